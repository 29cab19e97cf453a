"""Helpers for messages: listings, plurals, and the nearest known name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Iterable, Sequence


def listing(names: Iterable[str]) -> str:
    """a, b and c."""
    names = list(names)
    if len(names) < 2:
        return "".join(names)
    return ", ".join(names[:-1]) + " and " + names[-1]


def flowing(docstring: str | None) -> str:
    """A docstring whose paragraphs fill whatever width there is."""
    paragraphs = inspect.cleandoc(docstring or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def shortly(names: Iterable[str], most: int = 6) -> str:
    """'a', 'b' and 7 more: quoted names, as a repr has them, the long ones cut."""
    names = list(names)
    told = [repr(name if len(name) <= 60 else name[:59] + "…") for name in names[:most]]
    return listing([*told, f"{len(names) - most} more"] if len(names) > most else told)


def first_names(names: Sequence[str], most: int) -> str:
    """a, b and 7 more: the first names, and how many there are beside them."""
    more = len(names) - most
    return listing([*names[:most], *([f"{more} more"] if more > 0 else [])])


def count(number: int, noun: str) -> str:
    """1 module, 2 modules."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def nearest(name: str, known: Collection[str], otherwise: str = "") -> str:
    """The end of a message about an unknown name: the nearest known one, else `otherwise`.

    Without `otherwise` all known names are listed.
    """
    close = difflib.get_close_matches(name, known, 1)
    if close:
        return f"did you mean {close[0]!r}?"
    return otherwise or f"there are {', '.join(known)}."
