"""Ways of training a LoRA whose published code saves more or other things than a PEFT file.

trainings.toml has what each is, whether it is a composition, and what its code saves.
"""

from __future__ import annotations

import contextlib
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from loraprobe.checkpoint import open_weights
from loraprobe.errors import AdapterError


@dataclass(frozen=True)
class Training:
    """One way of training; see trainings.toml."""

    name: str
    title: str
    summary: str
    description: str
    paper: str
    formula: str = ""
    files: str = ""
    keys: str = ""
    saved: str = ""
    cure: str = ""


TRAININGS = tuple(
    Training(**row)
    for row in tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))[
        "training"
    ]
)


def of_keys(keys: Iterable[str]) -> Training | None:
    """The way of training whose code saves tensors under such keys."""
    names = list(keys)
    for one in TRAININGS:
        if one.keys and any(re.fullmatch(one.keys, name) for name in names):
            return one
    return None


def of_directory(path: Path) -> Training | None:
    """The way of training whose code wrote the files of a directory. No pickle is opened."""
    for one in TRAININGS:
        if one.files and any(re.fullmatch(one.files, file.name) for file in path.iterdir()):
            return one
    keys: list[str] = []
    for file in sorted(path.glob("*.safetensors")):
        with contextlib.suppress(AdapterError):
            keys += open_weights(file, str(path), AdapterError).shapes
    return of_keys(keys)
