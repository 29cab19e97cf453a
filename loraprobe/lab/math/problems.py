"""Word problems of one or two steps, with their worked steps and programs.

Somebody has a number of something; each sentence changes it by a verb and a number::

    Ada has 3. Ada buys 4. Ada eats 2. How many?

A verb stands for one of three operations, and the numbers stay between 0 and `LARGEST`. Numbers
are chosen so that no wrong reading of the verbs gives the right answer.
"""

from __future__ import annotations

import functools
import itertools
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

LARGEST = 12
NAMES = ("Ada", "Bo", "Cy", "Dee", "Eli", "Fay", "Gus", "Hal", "Ivy", "Jo", "Kit", "Lea", "Max",
         "Ned", "Ora", "Pia", "Roy", "Sue", "Tom", "Una")  # fmt: skip
OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "plus": lambda have, number: have + number,
    "minus": lambda have, number: have - number,
    "until": lambda have, number: number - have,
}
SHOW_STEPS = " Show the steps."
AS_PROGRAM = " As a program."
TEST_SHARE = 2  # one in so many triples of numbers is kept for the tests


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
    """Every way to write the problem's program: a + b is b + a, and a until b is b minus a."""
    texts = [str(problem.start)]
    for step in problem.steps:
        other = {"plus": "plus", "minus": "until", "until": "minus"}[step.operation]
        texts = [
            written
            for text in texts
            for written in (
                f"{step.operation}( {text}, {step.number})",
                f"{other}( {step.number}, {text})",
            )
        ]
    return texts


def run(start: int, operations: Sequence[str], numbers: Sequence[int]) -> int | None:
    """The result, or None where a number on the way leaves the range."""
    have = start
    for operation, number in zip(operations, numbers, strict=True):
        have = OPERATIONS[operation](have, number)
        if not 0 <= have <= LARGEST:
            return None
    return have


@functools.cache
def numbers_for(operations: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
    """All (start, number, ...) for these operations that no wrong reading of the verbs solves.

    A wrong reading takes another operation for some verb, or leaves some sentence out.
    """
    readings = [r for r in itertools.product((*OPERATIONS, None), repeat=len(operations))
                if r != operations]  # fmt: skip
    found = []
    for row in itertools.product(range(LARGEST + 1), repeat=len(operations) + 1):
        right = run(row[0], operations, row[1:])
        if right is not None and all(_read(row, reading) != right for reading in readings):
            found.append(row)
    return tuple(found)


def _read(row: tuple[int, ...], reading: Sequence[str | None]) -> int | None:
    kept = [(op, n) for op, n in zip(reading, row[1:], strict=True) if op is not None]
    return run(row[0], [op for op, _ in kept], [n for _, n in kept])


def is_for_tests(row: tuple[int, ...]) -> bool:
    """Whether these numbers are kept for the tests; one-step problems are not divided."""
    return len(row) > 2 and zlib.crc32(repr(row).encode()) % TEST_SHARE == 0


@functools.cache
def shares(operations: tuple[str, ...]) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """The numbers for these operations as (for training, for tests)."""
    rows = numbers_for(operations)
    return (
        tuple(row for row in rows if not is_for_tests(row)),
        tuple(row for row in rows if is_for_tests(row)),
    )


def draw_problem(
    rng: random.Random, verbs: Sequence[tuple[str, str]], *, tests: bool = False
) -> Problem:
    """A problem whose sentences have these (verb, operation), with numbers of the share wanted."""
    rows = shares(tuple(operation for _, operation in verbs))[tests]
    start, *numbers = rng.choice(rows)
    steps = tuple(Step(v, op, n) for (v, op), n in zip(verbs, numbers, strict=True))
    return Problem(rng.choice(NAMES), start, steps)
