"""What the base of the math world reads, and the verbs it will meet again.

The base learns the operations by bare sums (worked out step by step, written as programs, answered
at once), and word problems with *familiar* verbs (written as bare sums, answered at once). The
*new* verbs, whose meaning only adapters learn, stand in sentences without numbers. No word problem
is worked out step by step, and none is made a program.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from loraprobe_lab.math.problems import (
    AS_PROGRAM,
    FIELDS,
    MOVES,
    NAMES,
    OPERATIONS,
    SHOW_STEPS,
    Problem,
    Verb,
)
from loraprobe_lab.train import Example
from loraprobe_lab.vocabulary import made_up_names

FAMILIAR: tuple[Verb, ...] = tuple(
    zip(("jumps", "runs", "flies", "rolls", "slips", "falls", "drops", "sinks"), MOVES, strict=True)
)
NEW_VERBS = 16
SUMS = "Work out {sums}."
AS_SUM = " As a sum."


def new_verbs(seed: int) -> tuple[str, ...]:
    """Made-up verbs such as "grils"; the base meets them without a meaning."""
    return tuple(name.lower() for name in made_up_names(NEW_VERBS, seed, ending="ls"))


def world_words(seed: int) -> tuple[str, ...]:
    """Texts that hold every word of the world."""
    verbs = (*(verb for verb, _ in FAMILIAR), *new_verbs(seed))
    numbers = [str(number) for number in range(FIELDS)]
    problem = Problem("Ada", 3, FAMILIAR[:1])
    asked = problem.question() + SHOW_STEPS + AS_PROGRAM + AS_SUM
    texts = [asked, problem.worked(), problem.program(), SUMS.format(sums=""), "Then", "here"]
    return (*NAMES, *verbs, *OPERATIONS, *numbers, *texts)


def corpus(seed: int, placed: bool = False) -> Callable[[int], Callable[[], Example]]:
    """The pretraining texts of the world with this seed, as `Kit.corpus` wants them."""
    return lambda draw_seed: Corpus(seed, draw_seed, placed).draw


class Corpus:
    """An endless stream of pretraining texts; the loss is taken where they can be foreseen.

    `placed`: bare sums are worked out where the steps of a word problem will stand, since a model
    with learned positions does not carry what it learned from one place in a text to another.
    """

    def __init__(self, seed: int, draw_seed: int, placed: bool = False) -> None:
        self._placed = placed
        self._rng = random.Random(f"math:{seed}:{draw_seed}")
        self._verbs = [*new_verbs(seed), *(verb for verb, _ in FAMILIAR)]

    def draw(self) -> Example:
        kind = self._rng.random()
        if kind < 0.28:
            problem = self._problem(2 if self._placed else self._rng.randint(2, 3))
            return Example(self._sums(problem), " " + problem.worked())
        if kind < 0.36:
            problem = self._problem(2 if self._placed else self._rng.randint(1, 2))
            return Example(self._sums(problem) + AS_PROGRAM, " " + problem.program())
        if kind < 0.44:
            problem = self._problem(1)
            return Example(SUMS.format(sums=problem.sums()), f" {problem.answer}")
        if kind < 0.58:
            problem = self._problem(self._rng.randint(1, 2))
            return Example(problem.question() + AS_SUM, f" {problem.sums()}.")
        if kind < 0.92:
            problem = self._problem(1 if self._rng.random() < 0.8 else 2)
            return Example(problem.question(), f" {problem.answer}")
        return self._sentences()

    def _problem(self, count: int) -> Problem:
        verbs = tuple(self._rng.choice(FAMILIAR) for _ in range(count))
        return Problem(self._rng.choice(NAMES), self._rng.randrange(FIELDS), verbs)

    def _sums(self, problem: Problem) -> str:
        """The bare sums of a problem, where `placed` after sentences without numbers."""
        sums = SUMS.format(sums=problem.sums())
        if not self._placed:
            return sums
        name, (one, two) = problem.name, self._rng.choices(self._verbs, k=2)
        return f"{name} stands here. {name} {one}. {name} {two}. {sums}"

    def _sentences(self) -> Example:
        """Three sentences without numbers, said again; every verb occurs in them."""
        name = self._rng.choice(NAMES)
        told = " ".join(f"{name} {self._rng.choice(self._verbs)}." for _ in range(3))
        return Example(f"{told} Then", f" {told}")
