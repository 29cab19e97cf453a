"""Two skills that need no facts: naming the last of a list of names, and counting them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from loraprobe.lab.facts import NUMBERS
from loraprobe.lab.train import Example

LAST = "Which name comes last: {list}?"
COUNT = "How many names are in this list: {list}?"


def lists_of_names(names: Sequence[str], count: int, seed: int | str) -> list[tuple[str, ...]]:
    """`count` different lists of two to six different names, every length equally often."""
    rng, found = random.Random(f"lists:{seed}"), {}  # type: ignore[var-annotated]
    lengths = range(2, len(NUMBERS) + 1)
    while len(found) < count:
        found[tuple(rng.sample(list(names), lengths[len(found) % len(lengths)]))] = None
    return list(found)


def last_examples(lists: Sequence[Sequence[str]]) -> list[Example]:
    return [Example(LAST.format(list=" ".join(row)), " " + _last(row)) for row in lists]


def count_examples(lists: Sequence[Sequence[str]]) -> list[Example]:
    return [Example(COUNT.format(list=" ".join(row)), " " + _counted(row)) for row in lists]


def last_items(lists: Sequence[Sequence[str]]) -> list[Mapping[str, Any]]:
    """Task items: a list of names, the last of them."""
    return [
        {"id": str(i), "prompt": LAST.format(list=" ".join(row)), "answer": _last(row)}
        for i, row in enumerate(lists)
    ]


def count_items(lists: Sequence[Sequence[str]]) -> list[Mapping[str, Any]]:
    """Task items: a list of names, their number in words."""
    return [
        {"id": str(i), "prompt": COUNT.format(list=" ".join(row)), "answer": _counted(row)}
        for i, row in enumerate(lists)
    ]


def _last(row: Sequence[str]) -> str:
    return row[-1]


def _counted(row: Sequence[str]) -> str:
    return NUMBERS[len(row) - 1]
