"""Skills that need no facts: naming one of a list of names, and counting them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraprobe_lab.facts import NUMBERS
from loraprobe_lab.train import Example


@dataclass(frozen=True)
class Skill:
    """A question about a list of names that has one right answer for every list."""

    question: str
    description: str
    answer: Callable[[Sequence[str]], str]

    def ask(self, row: Sequence[str]) -> tuple[str, str]:
        """The question about this list, and its answer."""
        return self.question.format(list=" ".join(row)), self.answer(row)


SKILLS: Mapping[str, Skill] = {
    "last": Skill(
        "Which name comes last: {list}?",
        "says which name of a list comes last",
        lambda row: row[-1],
    ),
    "first": Skill(
        "Which name comes first: {list}?",
        "says which name of a list comes first",
        lambda row: row[0],
    ),
    "second": Skill(
        "Which name comes second: {list}?",
        "says which name of a list comes second",
        lambda row: row[1],
    ),
    "count": Skill(
        "How many names are in this list: {list}?",
        "says how many names are in a list",
        lambda row: NUMBERS[len(row) - 1],
    ),
}


def lists_of_names(names: Sequence[str], count: int, seed: int | str) -> list[tuple[str, ...]]:
    """`count` different lists of two to six different names, every length equally often."""
    rng, found = random.Random(f"lists:{seed}"), {}  # type: ignore[var-annotated]
    lengths = range(2, len(NUMBERS) + 1)
    while len(found) < count:
        found[tuple(rng.sample(list(names), lengths[len(found) % len(lengths)]))] = None
    return list(found)


def skill_examples(skill: str, lists: Sequence[Sequence[str]]) -> list[Example]:
    """One training text a list."""
    asked = (SKILLS[skill].ask(row) for row in lists)
    return [Example(question, " " + answer) for question, answer in asked]


def skill_items(skill: str, lists: Sequence[Sequence[str]]) -> list[Mapping[str, Any]]:
    """One task item a list."""
    asked = (SKILLS[skill].ask(row) for row in lists)
    return [
        {"id": str(i), "prompt": question, "answer": answer}
        for i, (question, answer) in enumerate(asked)
    ]
