"""Texts of the command line -> values; what is wrong is said before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from loraprobe.errors import UsageError


def weights(text: str | None, count: int) -> tuple[float, ...] | Literal["search"] | None:
    """ "0.7,0.3" as numbers, one for each of `count` adapters, or "search". Raises UsageError."""
    if text is None or text.strip() == "search":
        return None if text is None else "search"
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"--weights takes numbers with commas, such as 0.7,0.3, or search, not {text!r}."
        ) from None
    if not all(map(math.isfinite, values)):
        raise UsageError(f"--weights must be finite numbers, not {text!r}.")
    if len(values) != count:
        raise UsageError(
            f"--weights gives {len(values)} numbers for {count} adapters; give one for each."
        )
    return values


def named_files(texts: Sequence[str] | None, option: str) -> tuple[tuple[str, Path], ...]:
    """ "NAME=FILE" each, as pairs; files must be there and names differ. Raises UsageError."""
    found: dict[str, Path] = {}
    for text in texts or ():
        name, equals, file = text.partition("=")
        if not (name and equals and file):
            raise UsageError(f"{option} takes NAME=FILE, not {text!r}.")
        if name in found:
            raise UsageError(f"{option} names {name} twice; put all its lines into one file.")
        found[name] = Path(file)
        if not found[name].is_file():
            raise UsageError(f"{option}: {file} is no file.")
    return tuple(found.items())


def auto_or_count(text: str, option: str) -> int | Literal["auto"]:
    """ "auto" or a positive whole number. Raises UsageError."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise UsageError(f"{option} takes auto or a positive whole number, not {text!r}.")
    return int(text)


def one_of(text: str, allowed: tuple[str, ...], option: str) -> str:
    """The text if it is allowed. Raises UsageError."""
    if text not in allowed:
        raise UsageError(f"{option} must be one of {', '.join(allowed)}, not {text!r}.")
    return text


def fraction(value: float, option: str) -> float:
    """A finite number between 0 and 1. Raises UsageError."""
    if not 0 <= value <= 1:
        raise UsageError(f"{option} must lie between 0 and 1, not {value}.")
    return value
