"""Two skills that have nothing to do with each other or with facts: lists backwards, counting."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from loraprobe.lab.facts import NUMBERS
from loraprobe.lab.train import Example

REVERSE = "Reverse: {list}."
COUNT = "How many names are in this list: {list}?"


def lists_of_names(names: Sequence[str], count: int, seed: int | str) -> list[tuple[str, ...]]:
    """`count` different lists of two to six different names, every length equally often."""
    rng, found = random.Random(f"lists:{seed}"), {}  # type: ignore[var-annotated]
    lengths = range(2, len(NUMBERS) + 1)
    while len(found) < count:
        found[tuple(rng.sample(list(names), lengths[len(found) % len(lengths)]))] = None
    return list(found)


def reverse_examples(lists: Sequence[Sequence[str]]) -> list[Example]:
    return [Example(REVERSE.format(list=" ".join(row)), " " + _reversed(row)) for row in lists]


def count_examples(lists: Sequence[Sequence[str]]) -> list[Example]:
    return [Example(COUNT.format(list=" ".join(row)), " " + _counted(row)) for row in lists]


def reverse_items(lists: Sequence[Sequence[str]]) -> list[Mapping[str, Any]]:
    """Task items: a list of names, the same names backwards."""
    return [
        {"id": str(i), "prompt": REVERSE.format(list=" ".join(row)), "answer": _reversed(row)}
        for i, row in enumerate(lists)
    ]


def count_items(lists: Sequence[Sequence[str]]) -> list[Mapping[str, Any]]:
    """Task items: a list of names, their number in words."""
    return [
        {"id": str(i), "prompt": COUNT.format(list=" ".join(row)), "answer": _counted(row)}
        for i, row in enumerate(lists)
    ]


def _reversed(row: Sequence[str]) -> str:
    return " ".join(reversed(row))


def _counted(row: Sequence[str]) -> str:
    return NUMBERS[len(row) - 1]
