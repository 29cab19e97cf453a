"""What each server does with a PEFT file: the rules of `inspect --serve`, from servers.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# refuses: the file is not loaded. misreads: it is loaded as another function, without an error.
# may refuse: it depends on the base model.
Effect = Literal["refuses", "misreads", "may refuse"]


@dataclass(frozen=True)
class Server:
    """A server, the version whose source was read, and when.

    `ranks` are the values of its limit on the rank, the default first; () for none. `command`
    starts it with an adapter; {base}, {name}, {place} and {limit} are filled in.
    """

    version: str
    checked: str
    source: str
    command: str
    ranks: tuple[int, ...] = ()


@dataclass(frozen=True)
class Feature:
    """What a file may have that a server does not read: its name in a sentence, and its cure.

    `consequence` says what follows where a server reads the file without it.
    """

    what: str
    cure: str
    consequence: str = ""


@dataclass(frozen=True)
class Rule:
    """What servers do with a feature. `fixed` is the first version that reads it, "" for none."""

    feature: str
    servers: tuple[str, ...]
    effect: Effect
    fixed: str = ""


_READ = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
SERVERS: Mapping[str, Server] = {
    name: Server(**{**row, "ranks": tuple(row.get("ranks", ()))})
    for name, row in _READ["servers"].items()
}
FEATURES: Mapping[str, Feature] = {
    name: Feature(**{**row, "cure": _READ["cures"].get(row["cure"], row["cure"])})
    for name, row in _READ["features"].items()
}
RULES = tuple(Rule(feature, tuple(names), *rest) for feature, names, *rest in _READ["rules"])
