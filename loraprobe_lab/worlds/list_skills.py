"""Skills that need no facts: naming one of a list of names, and counting them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraprobe_lab.training.batches import Example

NUMBERS = ("one", "two", "three", "four", "five", "six")


@dataclass(frozen=True)
class ListSkill:
    """A question about a list of names that has one right answer for every list."""

    question: str
    description: str
    answer: Callable[[Sequence[str]], str]

    def ask(self, row: Sequence[str]) -> tuple[str, str]:
        """The question about this list, and its answer."""
        return self.question.format(list=" ".join(row)), self.answer(row)

    def examples(self, lists: Sequence[Sequence[str]]) -> list[Example]:
        """One training text a list."""
        return [Example(question, " " + answer) for question, answer in map(self.ask, lists)]

    def items(self, lists: Sequence[Sequence[str]]) -> list[Mapping[str, Any]]:
        """One task item a list."""
        return [
            {"id": str(i), "prompt": question, "answer": answer}
            for i, (question, answer) in enumerate(map(self.ask, lists))
        ]


def _place(word: str, index: int) -> ListSkill:
    return ListSkill(
        f"Which name comes {word}: {{list}}?",
        f"says which name of a list comes {word}",
        lambda row: row[index],
    )


SKILLS: Mapping[str, ListSkill] = {
    "last": _place("last", -1),
    "first": _place("first", 0),
    "second": _place("second", 1),
    "count": ListSkill(
        "How many names are in this list: {list}?",
        "says how many names are in a list",
        lambda row: NUMBERS[len(row) - 1],
    ),
}


def lists_of_names(names: Sequence[str], count: int, seed: int | str) -> list[tuple[str, ...]]:
    """`count` different lists of two to six different names, every length equally often."""
    rng, found = random.Random(f"lists:{seed}"), dict[tuple[str, ...], None]()
    lengths = range(2, len(NUMBERS) + 1)
    while len(found) < count:
        found[tuple(rng.sample(list(names), lengths[len(found) % len(lengths)]))] = None
    return list(found)
