"""Limits on the resources that an untrusted file may use. Each can be raised.

    loraprobe --limits modules=1000000,line=5MB inspect ...
    LORAPROBE_LIMITS=memory=48GiB loraprobe merge-and-eval ...

A file beyond a limit is refused, and the message names the limit. The safetensors library itself
limits headers to 100 MB.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from loraprobe.errors import UsageError

DEEPEST = 50  # the most levels of lists and objects in a config, which cannot be raised
VARIABLE = "LORAPROBE_LIMITS"
_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Limits:
    """The limits with their defaults.

    config: bytes of an adapter's or a base's config and of an index of shards.
    tokenizer: bytes of a tokenizer.json.
    card: bytes of a model card.
    tensors: tensors in one weight file.
    modules: modules of one adapter.
    line: bytes of one line of a task or probe file.
    items: bytes of a task or probe file.
    inflation: the largest factor by which unpacking may enlarge a weight file.
    memory: bytes that may be used; 0 for the free memory of the machine.
    links: 1 to follow symbolic links that lead out of the given directory.
    """

    config: int = 10_000_000
    tokenizer: int = 200_000_000
    card: int = 5_000_000
    tensors: int = 2_000_000
    modules: int = 500_000
    line: int = 1_000_000
    items: int = 2_000_000_000
    inflation: int = 4
    memory: int = 0
    links: int = 0


_CURRENT: list[Limits] = []


def limits() -> Limits:
    """The current limits: those of `set_limits`, else of the environment, else the defaults."""
    if not _CURRENT:
        set_limits(os.environ.get(VARIABLE, ""), VARIABLE)
    return _CURRENT[-1]


def set_limits(text: str, where: str = "--limits") -> Limits:
    """Sets limits such as "modules=1000000,line=5MB"; the others get their defaults.

    Raises UsageError for an unknown name and for a value that is no number.
    """
    chosen = Limits()
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, value = (piece.strip() for piece in part.partition("="))
        known = [field.name for field in fields(Limits)]
        if name not in known:
            raise UsageError(f"{where} has no {name!r}; the limits are {', '.join(known)}.")
        chosen = replace(chosen, **{name: _number(value, f"{where}: {name}")})
    _CURRENT[:] = [chosen]
    return chosen


def how_to_raise(name: str, needed: int) -> str:
    """The end of a message that tells how to raise a limit."""
    return f"raise the limit with loraprobe --limits {name}={needed} if it is meant"


def nested_values(document: Mapping[str, Any]) -> Iterator[tuple[str, Any, int]]:
    """(dotted path of keys, value, depth) of every value in a JSON object, without recursion.

    Values deeper than DEEPEST + 1 levels are left out.
    """
    waiting: list[tuple[str, Any, int]] = [("", document, 0)]
    while waiting:
        key, value, depth = waiting.pop()
        if depth:
            yield key, value, depth
        if depth > DEEPEST:
            continue
        if isinstance(value, Mapping):
            waiting += [(f"{key}.{k}".lstrip("."), v, depth + 1) for k, v in value.items()]
        elif isinstance(value, list):
            waiting += [(key, v, depth + 1) for v in value]


def _number(text: str, what: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", text)
    if not found or found[2].lower() not in _UNITS:
        raise UsageError(f"{what} must be a number such as 500000, 5MB or 2GiB, not {text!r}.")
    number = float(found[1]) * _UNITS[found[2].lower()]
    if number >= 2**63:
        raise UsageError(f"{what} must be less than 2^63, not a number of {len(found[1])} digits.")
    return int(number)
