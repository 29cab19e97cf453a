"""Word problems of one or two steps, with their worked steps and programs.

They are moves of a game on a ring of ten fields, numbered 0 to 9; each verb is a move::

    Ada stands on 3. Ada jumps. Ada slips. Where now?

A move goes forward or back by one to four fields. Every move is possible everywhere, so the
numbers do not give away what an unknown verb means; and no two moves lead to the same field, so
whoever takes one verb for another move gets a wrong answer.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

FIELDS = 10
FARTHEST = 4
NAMES = ("Ada", "Amy", "Ben", "Bo", "Cal", "Cy", "Dan", "Dee", "Eli", "Eve", "Fay", "Flo", "Gil",
         "Gus", "Hal", "Ida", "Ike", "Ivy", "Jan", "Jo", "Kay", "Kit", "Lea", "Lou", "Max", "Mia",
         "Ned", "Nia", "Ora", "Pat", "Pia", "Ray", "Roy", "Sue", "Ted", "Tom", "Una", "Val", "Wim",
         "Zoe")  # fmt: skip
OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "plus": lambda field, number: (field + number) % FIELDS,
    "minus": lambda field, number: (field - number) % FIELDS,
}
Move = tuple[str, int]  # operation and number
MOVES: tuple[Move, ...] = tuple((op, n) for op in OPERATIONS for n in range(1, FARTHEST + 1))
Verb = tuple[str, Move]  # a verb and the move that it stands for
SHOW_STEPS = " Show the steps."
AS_PROGRAM = " As a program."
TRAINING = 4  # one in so many kinds of problems is for training, the others for the tests


@dataclass(frozen=True)
class Problem:
    """Somebody (`name`) stands on the field `start` and moves by `verbs`."""

    name: str
    start: int
    verbs: tuple[Verb, ...]

    def results(self) -> list[int]:
        """The field after each move."""
        found, field = [], self.start
        for _, (operation, number) in self.verbs:
            field = OPERATIONS[operation](field, number)
            found.append(field)
        return found

    @property
    def answer(self) -> int:
        return self.results()[-1]

    def question(self, start: str | None = None) -> str:
        """The problem in words; `start` may replace the field ("{1}" in a hop)."""
        told = [f"{self.name} stands on {self.start if start is None else start}."]
        told += [f"{self.name} {verb}." for verb, _ in self.verbs]
        return " ".join([*told, "Where now?"])

    def steps(self) -> list[str]:
        """The worked steps, one a move: "3 plus 2 is 5", "minus 1 is 4"."""
        told = [
            f"{operation} {number} is {after}"
            for (_, (operation, number)), after in zip(self.verbs, self.results(), strict=True)
        ]
        return [f"{self.start} {told[0]}", *told[1:]]

    def worked(self) -> str:
        """ "3 plus 2 is 5 minus 1 is 4. The answer is 4."."""
        return f"{' '.join(self.steps())}. The answer is {self.answer}."

    def program(self) -> str:
        """The moves as calls, innermost first: "minus( plus( 3, 2), 1)". See `program.evaluate`."""
        text = str(self.start)
        for _, (operation, number) in self.verbs:
            text = f"{operation}( {text}, {number})"
        return text

    def sums(self) -> str:
        """The problem without its words, "3 plus 2 minus 1": what makes two problems akin."""
        return " ".join([str(self.start), *(f"{op} {number}" for _, (op, number) in self.verbs)])


def programs(problem: Problem) -> list[str]:
    """Every way to write the problem's program: a plus b may be written as b plus a."""
    texts = [str(problem.start)]
    for _, (operation, number) in problem.verbs:
        ways = [f"{operation}( {text}, {number})" for text in texts]
        if operation == "plus":
            ways += [f"plus( {number}, {text})" for text in texts]
        texts = ways
    return list(dict.fromkeys(texts))


def is_for_tests(problem: Problem) -> bool:
    """Whether problems with these numbers are kept for the tests; those of one step never are.

    For every pair of moves two or three of the ten fields are left for training.
    """
    if len(problem.verbs) < 2:
        return False
    moves = problem.sums().partition(" ")[2]
    return (problem.start + zlib.crc32(moves.encode())) % TRAINING > 0


def draw_problem(rng: random.Random, verbs: Sequence[Verb], *, tests: bool = False) -> Problem:
    """A problem with these verbs, of those for training or of those kept for the tests.

    Raises:
        ValueError: one verb has no problems that are kept for the tests.
    """
    if tests and len(verbs) < 2:
        raise ValueError("problems of one step are all for training")
    while True:
        problem = Problem(rng.choice(NAMES), rng.randrange(FIELDS), tuple(verbs))
        if is_for_tests(problem) == tests:
            return problem
