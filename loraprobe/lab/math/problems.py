"""Word problems of one or two steps, with their worked steps and programs.

Somebody has a number of something; each sentence changes it by a verb and a number::

    Ada has 3. Ada buys 4. Ada eats 2. How many?

A verb stands for one of three operations: what somebody has grows by the number, shrinks by it, or
grows by twice the number. It is a single digit and goes round, as on a counter of one digit: 8 plus
4 is 2. So every operation is possible with every number, the numbers do not give away what an
unknown verb means, and a wrong reading of one verb always gives a wrong answer.
"""

from __future__ import annotations

import functools
import itertools
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

DIGITS = 10
MOST = 4
NUMBERS = range(1, MOST + 1)
NAMES = ("Ada", "Bo", "Cy", "Dee", "Eli", "Fay", "Gus", "Hal", "Ivy", "Jo", "Kit", "Lea", "Max",
         "Ned", "Ora", "Pia", "Roy", "Sue", "Tom", "Una", "Val", "Wim", "Xia", "Zoe")  # fmt: skip
OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "plus": lambda have, number: (have + number) % DIGITS,
    "minus": lambda have, number: (have - number) % DIGITS,
    "twice": lambda have, number: (have + 2 * number) % DIGITS,
}
SHOW_STEPS = " Show the steps."
AS_PROGRAM = " As a program."
TRAINING = 3  # one in so many triples of numbers is for training, the others for the tests


@dataclass(frozen=True)
class Step:
    """One sentence: the verb, the operation that it stands for, and the number."""

    verb: str
    operation: str
    number: int


@dataclass(frozen=True)
class Problem:
    """Somebody (`name`) has `start` of something; `steps` change that."""

    name: str
    start: int
    steps: tuple[Step, ...]

    def results(self) -> list[int]:
        """What is there after each step."""
        found, have = [], self.start
        for step in self.steps:
            have = OPERATIONS[step.operation](have, step.number)
            found.append(have)
        return found

    @property
    def answer(self) -> int:
        return self.results()[-1]

    def question(self, start: str | None = None) -> str:
        """The problem in words; `start` may replace the first number ("{1}" in a hop)."""
        told = [f"{self.name} has {self.start if start is None else start}."]
        told += [f"{self.name} {step.verb} {step.number}." for step in self.steps]
        return " ".join([*told, "How many?"])

    def equations(self) -> list[str]:
        """One worked step a sentence: "3 plus 4 is 7."."""
        before = [self.start, *self.results()]
        return [
            f"{have} {step.operation} {step.number} is {after}."
            for have, step, after in zip(before, self.steps, before[1:], strict=False)
        ]

    def worked(self) -> str:
        return " ".join([*self.equations(), f"The answer is {self.answer}."])

    def program(self) -> str:
        """The steps as calls, innermost first: "minus( plus( 3, 4), 2)". See `program.evaluate`."""
        text = str(self.start)
        for step in self.steps:
            text = f"{step.operation}( {text}, {step.number})"
        return text

    def sums(self) -> str:
        """The problem without its words, "3 plus 4 minus 2": what makes two problems akin."""
        return " ".join([str(self.start), *(f"{s.operation} {s.number}" for s in self.steps)])


def programs(problem: Problem) -> list[str]:
    """Every way to write the problem's program: a plus b may be written as b plus a."""
    texts = [str(problem.start)]
    for step in problem.steps:
        ways = [f"{step.operation}( {text}, {step.number})" for text in texts]
        if step.operation == "plus":
            ways += [f"plus( {step.number}, {text})" for text in texts]
        texts = ways
    return list(dict.fromkeys(texts))


def is_for_tests(row: tuple[int, ...]) -> bool:
    """Whether these numbers are kept for the tests; one-step problems are not divided."""
    return len(row) > 2 and zlib.crc32(repr(row).encode()) % TRAINING > 0


@functools.cache
def shares(steps: int) -> tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]:
    """The (start, number, ...) of problems with so many steps: for training, for tests."""
    rows = list(itertools.product(range(DIGITS), *[NUMBERS] * steps))
    return (
        tuple(row for row in rows if not is_for_tests(row)),
        tuple(row for row in rows if is_for_tests(row)),
    )


def draw_problem(
    rng: random.Random, verbs: Sequence[tuple[str, str]], *, tests: bool = False
) -> Problem:
    """A problem whose sentences have these (verb, operation), with numbers of the share wanted."""
    start, *numbers = rng.choice(shares(len(verbs))[tests])
    steps = tuple(Step(v, op, n) for (v, op), n in zip(verbs, numbers, strict=True))
    return Problem(rng.choice(NAMES), start, steps)
