"""What the base of the math world reads, and the verbs it will meet again.

The base learns the three operations by bare sums worked out step by step, and word problems with
*familiar* verbs, answered at once. The *new* verbs, whose meaning only adapters learn, stand in
sentences without numbers. No word problem is worked out step by step.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from loraprobe.lab.math.problems import (
    AS_PROGRAM,
    LARGEST,
    NAMES,
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
    ("needs", "until"),
    ("wants", "until"),
    ("lacks", "until"),
)
NEW_VERBS = 16
SUMS = "Work out {sums}."


def new_verbs(seed: int) -> tuple[str, ...]:
    """Made-up verbs such as "grils"; the base meets them without any meaning."""
    return tuple(name.lower() for name in made_up_names(NEW_VERBS, seed, ending="ls"))


def world_words(seed: int) -> tuple[str, ...]:
    """Texts that hold every word of the world."""
    verbs = (*(verb for verb, _ in FAMILIAR), *new_verbs(seed))
    numbers = [str(number) for number in range(LARGEST + 1)]
    problem = Problem("Ada", 3, (Step("buys", "plus", 4),))
    texts = [problem.question() + SHOW_STEPS + AS_PROGRAM, problem.worked(), problem.program()]
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
        if kind < 0.20:
            return self._bare_sums()
        if kind < 0.35:
            sums = self._sums(1)
            return Example(SUMS.format(sums=sums.sums()), f" {sums.answer}")
        if kind < 0.90:
            return self._familiar()
        return self._sentences()

    def _bare_sums(self) -> Example:
        """Two or three operations worked out, none of them told by a verb."""
        sums = self._sums(self._rng.randint(2, 3))
        return Example(SUMS.format(sums=sums.sums()), " " + sums.worked())

    def _sums(self, count: int) -> Problem:
        """`count` operations without verbs; every result stays in the range."""
        operations = list(OPERATIONS)
        start = have = self._rng.randint(0, LARGEST)
        steps: list[Step] = []
        while len(steps) < count:
            step = Step("", self._rng.choice(operations), self._rng.randint(0, LARGEST))
            after = OPERATIONS[step.operation](have, step.number)
            if 0 <= after <= LARGEST:
                have = after
                steps.append(step)
        return Problem("", start, tuple(steps))

    def _familiar(self) -> Example:
        """A word problem of one or two familiar verbs, answered at once."""
        count = 1 if self._rng.random() < 0.75 else 2
        problem = draw_problem(self._rng, [self._rng.choice(FAMILIAR) for _ in range(count)])
        return Example(problem.question(), f" {problem.answer}")

    def _sentences(self) -> Example:
        """Three sentences without numbers, said again; every verb occurs in them."""
        name, verbs = self._rng.choice(NAMES), [*self._new, *(verb for verb, _ in FAMILIAR)]
        told = [f"{name} {self._rng.choice(verbs)}." for _ in range(3)]
        return Example(" ".join([*told, "Then"]), " " + " ".join(told))
