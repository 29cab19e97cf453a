"""Grammar that messages share: listings and numbers."""

from __future__ import annotations

from collections.abc import Iterable


def listing(names: Iterable[str]) -> str:
    """a, b and c."""
    names = list(names)
    if len(names) < 2:
        return "".join(names)
    return ", ".join(names[:-1]) + " and " + names[-1]


def count(number: int, noun: str) -> str:
    """1 module, 2 modules."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
