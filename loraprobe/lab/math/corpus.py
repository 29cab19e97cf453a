"""What the base of the math world reads, and the verbs it will meet again.

The base learns the three operations by bare sums, worked out step by step or at once, and word
problems with *familiar* verbs, answered at once or written as a bare sum. The *new* verbs, whose
meaning only adapters learn, stand in sentences without numbers. No word problem is worked out
step by step, and none is made a program.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from loraprobe.lab.math.problems import (
    AS_PROGRAM,
    DIGITS,
    NAMES,
    NUMBERS,
    OPERATIONS,
    SHOW_STEPS,
    Problem,
    Step,
    draw_problem,
)
from loraprobe.lab.train import Example
from loraprobe.lab.vocabulary import made_up_names

FAMILIAR = (
    ("buys", "plus"),
    ("finds", "plus"),
    ("wins", "plus"),
    ("eats", "minus"),
    ("loses", "minus"),
    ("sells", "minus"),
    ("sows", "twice"),
    ("lends", "twice"),
    ("plants", "twice"),
)
NEW_VERBS = 16
SUMS = "Work out {sums}."
AS_SUM = " As a sum."


def new_verbs(seed: int) -> tuple[str, ...]:
    """Made-up verbs such as "grils"; the base meets them without any meaning."""
    return tuple(name.lower() for name in made_up_names(NEW_VERBS, seed, ending="ls"))


def world_words(seed: int) -> tuple[str, ...]:
    """Texts that hold every word of the world."""
    verbs = (*(verb for verb, _ in FAMILIAR), *new_verbs(seed))
    numbers = [str(number) for number in range(DIGITS)]
    problem = Problem("Ada", 3, (Step("buys", "plus", 4),))
    texts = [
        problem.question() + SHOW_STEPS + AS_PROGRAM + AS_SUM,
        problem.worked(),
        problem.program(),
    ]
    return (*NAMES, *verbs, *OPERATIONS, *numbers, *texts, SUMS, "Then")


def corpus(seed: int) -> Callable[[int], Callable[[], Example]]:
    """The pretraining texts of the world with this seed, as `Kit.corpus` wants them."""
    return lambda draw_seed: Corpus(seed, draw_seed).draw


class Corpus:
    """An endless stream of pretraining texts; the loss is taken where they can be foreseen."""

    def __init__(self, seed: int, draw_seed: int) -> None:
        self._rng = random.Random(f"math:{seed}:{draw_seed}")
        self._new = new_verbs(seed)

    def draw(self) -> Example:
        kind = self._rng.random()
        if kind < 0.20:  # two or three operations worked out
            sums = self._sums(self._rng.randint(2, 3))
            return Example(SUMS.format(sums=sums.sums()), " " + sums.worked())
        if kind < 0.35:
            sums = self._sums(1)
            return Example(SUMS.format(sums=sums.sums()), f" {sums.answer}")
        if kind < 0.65:
            problem = self._familiar(self._rng.randint(1, 2))
            return Example(problem.question() + AS_SUM, f" {problem.sums()}.")
        if kind < 0.90:
            problem = self._familiar(1 if self._rng.random() < 0.75 else 2)
            return Example(problem.question(), f" {problem.answer}")
        return self._sentences()

    def _sums(self, count: int) -> Problem:
        """`count` operations without verbs."""
        operations = list(OPERATIONS)
        steps = [Step("", self._rng.choice(operations), self._rng.choice(NUMBERS))
                 for _ in range(count)]  # fmt: skip
        return Problem("", self._rng.randrange(DIGITS), tuple(steps))

    def _familiar(self, count: int) -> Problem:
        return draw_problem(self._rng, [self._rng.choice(FAMILIAR) for _ in range(count)])

    def _sentences(self) -> Example:
        """Three sentences without numbers, said again; every verb occurs in them."""
        name, verbs = self._rng.choice(NAMES), [*self._new, *(verb for verb, _ in FAMILIAR)]
        told = [f"{name} {self._rng.choice(verbs)}." for _ in range(3)]
        return Example(" ".join([*told, "Then"]), " " + " ".join(told))
