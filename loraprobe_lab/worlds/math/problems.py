"""Word problems of one or two steps, with their worked steps and programs, and what a base reads.

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

from loraprobe_lab.training.batches import Example
from loraprobe_lab.worlds.known import made_up_names

FIELDS = 10
FARTHEST = 4
NAMES = (
    "Ada Amy Ben Bo Cal Cy Dan Dee Eli Eve Fay Flo Gil Gus Hal Ida Ike Ivy Jan Jo Kay Kit Lea Lou "
    "Max Mia Ned Nia Ora Pat Pia Ray Roy Sue Ted Tom Una Val Wim Zoe"
).split()
OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "plus": lambda field, number: (field + number) % FIELDS,
    "minus": lambda field, number: (field - number) % FIELDS,
}
Move = tuple[str, int]  # operation and number
MOVES: tuple[Move, ...] = tuple((op, n) for op in OPERATIONS for n in range(1, FARTHEST + 1))
Verb = tuple[str, Move]  # a verb and the move that it stands for
FAMILIAR: tuple[Verb, ...] = tuple(
    zip(("jumps", "runs", "flies", "rolls", "slips", "falls", "drops", "sinks"), MOVES, strict=True)
)
NEW_VERBS = 16
SHOW_STEPS = " Show the steps."
AS_PROGRAM = " As a program."
AS_SUM = " As a sum."
SUMS = "Work out {sums}."
PROGRAM_PATTERN = rf"((?:{'|'.join(OPERATIONS)})\(.*\))"  # finds a program in an answer
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

    def programs(self) -> list[str]:
        """Every way to write the moves as calls, innermost first: "minus( plus( 3, 2), 1)".

        a plus b may be written as b plus a; the first way keeps the order of the problem.
        """
        texts = [str(self.start)]
        for _, (operation, number) in self.verbs:
            ways = [f"{operation}( {text}, {number})" for text in texts]
            if operation == "plus":
                ways += [f"plus( {number}, {text})" for text in texts]
            texts = ways
        return list(dict.fromkeys(texts))

    def program(self) -> str:
        return self.programs()[0]

    def sums(self) -> str:
        """The problem without its words, "3 plus 2 minus 1": what makes two problems akin."""
        return " ".join([str(self.start), *(f"{op} {number}" for _, (op, number) in self.verbs)])

    def is_for_tests(self) -> bool:
        """Whether problems with these numbers are kept for the tests; one step never is.

        For every pair of moves two or three of the ten fields are left for training.
        """
        moves = self.sums().partition(" ")[2]
        return len(self.verbs) > 1 and (self.start + zlib.crc32(moves.encode())) % TRAINING > 0


def draw_problem(rng: random.Random, verbs: Sequence[Verb], *, tests: bool = False) -> Problem:
    """A problem with these verbs, of those for training or of those kept for the tests.

    Raises:
        ValueError: one verb has no problems that are kept for the tests.
    """
    if tests and len(verbs) < 2:
        raise ValueError("problems of one step are all for training")
    while True:
        problem = Problem(rng.choice(NAMES), rng.randrange(FIELDS), tuple(verbs))
        if problem.is_for_tests() == tests:
            return problem


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


class ProblemsCorpus:
    """An endless stream of pretraining texts; the loss is taken where they can be foreseen.

    The base learns the operations by bare sums (worked out step by step, written as programs,
    answered at once), and word problems with *familiar* verbs (written as bare sums, answered at
    once). The *new* verbs, whose meaning only adapters learn, stand in sentences without numbers.
    No word problem is worked out step by step, and none is made a program.

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
        name = self._rng.choice(NAMES)  # sentences without numbers, said again
        told = " ".join(f"{name} {self._rng.choice(self._verbs)}." for _ in range(3))
        return Example(f"{told} Then", f" {told}")

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
