"""Word problems with known steps: adapters learn new verbs, the target combines them.

Problems are moves of a game on a ring of ten fields, numbered 0 to 9; each verb is a move::

    Ada stands on 3. Ada jumps. Ada slips. Where now?

A move goes forward or back by one to four fields. Every move is possible everywhere, so the
numbers do not give away what an unknown verb means; and no two moves lead to the same field, so
whoever takes one verb for another move gets a wrong answer.
"""

from __future__ import annotations

import dataclasses
import random
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraprobe_lab.training import BaseRecipe, Example, Recipe
from loraprobe_lab.worlds.facts import made_up_names
from loraprobe_lab.worlds.spec import AdapterSet, Item, TrainingSet, WorldSpec, own_seed

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
    """A problem with these verbs, of those for training or, with two verbs, kept for the tests."""
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
    texts = [asked, problem.worked(), problem.programs()[0], SUMS.format(sums=""), "Then", "here"]
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
            return Example(self._sums(problem) + AS_PROGRAM, " " + problem.programs()[0])
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


AT_ONCE_SHARE = 0.35  # of an adapter's problems, one step each: so that it knows its hop


@dataclass(frozen=True)
class VerbSkill:
    """The verbs that an adapter learns, and how its problems are answered.

    template: "worked" (steps, when asked to show them), "program" (a program, when asked for
    one), "at-once" (the answer alone). part: "whole", or "first" or "second" for the one step of
    the worked answer of two that this adapter writes. contrast: how often another sentence of its
    problems has a familiar verb; at 0 every verb that the adapter sees is its own.
    """

    verbs: tuple[Verb, ...]
    template: str = "worked"
    part: str = "whole"
    contrast: float = 0.5

    def examples(self, count: int, seed: int | str) -> list[Example]:
        """`count` texts: problems of one step answered at once, and the skill's own form."""
        rng = random.Random(f"math skill:{seed}")
        return [self._example(rng) for _ in range(count)]

    def _example(self, rng: random.Random) -> Example:
        if rng.random() < AT_ONCE_SHARE:
            problem = draw_problem(rng, [self._other(rng)])
            return Example(problem.question(), f" {problem.answer}")
        if self.part != "whole":
            return self._one_step_of_two(rng)
        verbs = [rng.choice(self.verbs)]
        if rng.random() < 0.75:  # else one verb alone
            verbs.insert(rng.randrange(2), self._other(rng))
        return write(draw_problem(rng, verbs), self.template)

    def _other(self, rng: random.Random) -> Verb:
        return rng.choice(FAMILIAR if rng.random() < self.contrast else self.verbs)

    def _one_step_of_two(self, rng: random.Random) -> Example:
        own, other = rng.choice(self.verbs), self._other(rng)
        problem = draw_problem(rng, [own, other] if self.part == "first" else [other, own])
        first = problem.steps()[0]
        if self.part == "first":
            return Example(problem.question() + SHOW_STEPS, f" {first}", end=False)
        rest = problem.worked().removeprefix(first)
        return Example(f"{problem.question()}{SHOW_STEPS} {first}", rest)


def write(problem: Problem, template: str) -> Example:
    """A problem with its answer in that template."""
    if template == "worked":
        return Example(problem.question() + SHOW_STEPS, " " + problem.worked())
    if template == "program":
        return Example(problem.question() + AS_PROGRAM, " " + problem.programs()[0])
    return Example(problem.question(), f" {problem.answer}")


def target_examples(
    verbs: tuple[Sequence[Verb], Sequence[Verb]], template: str, count: int, seed: int | str
) -> list[Example]:
    """`count` texts on the target itself: problems with a verb of each adapter.

    Half of them are answered at once; none has numbers of the tests.
    """
    rng = random.Random(f"math target:{seed}")
    return [
        write(
            draw_problem(rng, [rng.choice(verbs[0]), rng.choice(verbs[1])]),
            template if rng.random() < 0.5 else "at-once",
        )
        for _ in range(count)
    ]


def target_items(
    adapters: tuple[str, str],
    verbs: tuple[Sequence[Verb], Sequence[Verb]],
    *,
    template: str,
    count: int,
    seed: int | str,
) -> list[Mapping[str, Any]]:
    """`count` different problems of two steps, with a verb of each adapter.

    Asked at once and, as `cot_prompt`, in the template ("at-once" is asked to show the steps).
    Every way to write the problem's program is right. Hop 1 is the problem up to its first verb,
    hop 2 goes on from hop 1's answer. Problems with the same numbers and operations are one group.
    """
    rng = random.Random(f"math target items:{seed}")
    found: dict[Problem, None] = {}
    for _ in range(20 * count):
        if len(found) == count:
            break
        problem = draw_problem(rng, [rng.choice(verbs[0]), rng.choice(verbs[1])], tests=True)
        if problem.answer != problem.start:
            found[problem] = None
    else:
        raise ValueError(f"these verbs have fewer than {count} problems; ask for fewer items")
    return [_item(i, problem, adapters, template) for i, problem in enumerate(found)]


def _item(
    number: int, problem: Problem, adapters: tuple[str, str], template: str
) -> Mapping[str, Any]:
    one, two = (Problem(problem.name, problem.start, (verb,)) for verb in problem.verbs)
    answer, program = str(problem.answer), template == "program"
    return {
        "id": str(number),
        "prompt": problem.question(),
        "answer": [answer, *problem.programs()] if program else answer,
        "hops": [
            {"prompt": one.question(), "answer": str(problem.results()[0]), "adapter": adapters[0]},
            {"prompt": two.question(start="{1}"), "answer": answer, "adapter": adapters[1]},
        ],
        "cot_prompt": problem.question() + (AS_PROGRAM if program else SHOW_STEPS),
        **({"answer_pattern": PROGRAM_PATTERN} if program else {}),
        "group": problem.sums(),
    }


ITEMS, MATRIX_ITEMS = 1500, 300  # some verbs have fewer than 2,000 problems
EXAMPLES = 2000
BASE = BaseRecipe(
    hidden=96,
    layers=3,
    heads=4,
    intermediate=240,
    initial=0.09,
    steps=950,
    batch_size=32,
    learning_rate=4e-3,
    warmup=50,
)
SHARED = (("worked", "worked"), ("program", "program"))
APART = (("worked", "at-once"), ("worked", "program"), ("at-once", "at-once"))
# template -> what the matrix of the experiment calls it
TEMPLATES = {"at-once": "plain", "worked": "cot", "program": "shared"}
Verbs = tuple[tuple[Verb, ...], tuple[Verb, ...]]  # of the first and of the second adapter


@dataclass(frozen=True)
class MathAxes:
    """What differs from set to set.

    templates: those of the two adapters. division: "types" (the first adapter knows the moves
    forward, the second those back), "verbs" (each knows moves of any kind), or "steps" (the first
    writes the first worked step, the second one the second). verbs: new verbs of each adapter.
    alpha: what the first adapter's alpha is multiplied with, so that the norms differ.
    """

    templates: tuple[str, str]
    division: str
    verbs: int
    contrast: float
    rank: int
    steps: int
    learning_rate: float
    target_modules: str
    alpha: float

    @property
    def asked(self) -> str:
        """The template in which the target is asked for: that of the first adapter with one."""
        return next((t for t in self.templates if t != "at-once"), "worked")

    def recipe(self, seed: int, alpha: float = 1.0) -> Recipe:
        """The recipe of one of the set's adapters."""
        return Recipe(
            steps=self.steps,
            learning_rate=self.learning_rate,
            rank=self.rank,
            alpha=self.rank * alpha,
            batch_size=16,
            warmup=10,
            target_modules=self.target_modules,
            dtype="bfloat16",
            seed=seed,
        )

    def plain(self) -> dict[str, Any]:
        """The axes as a set records them: plain values only."""
        rows = dataclasses.asdict(self)
        shared = self.templates[0] == self.templates[1] != "at-once"
        rows = {key: "+".join(v) if isinstance(v, tuple) else v for key, v in rows.items()}
        return {**rows, "shared_template": shared}


MATRIX = MathAxes(
    templates=("worked", "worked"),
    division="verbs",
    verbs=3,
    contrast=0.8,
    rank=8,
    steps=320,
    learning_rate=3e-3,
    target_modules="all-linear",
    alpha=1.0,
)


def draw_axes(rng: random.Random, shared: bool) -> MathAxes:
    """Axes at random; `shared` says whether both adapters write in one template."""
    templates = rng.choice(SHARED if shared else APART)
    divisions = ("types", "verbs", "steps") if templates == SHARED[0] else ("types", "verbs")
    if not shared and rng.random() < 0.5:
        templates = (templates[1], templates[0])
    return MathAxes(
        templates=templates,
        division=rng.choice(divisions),
        verbs=rng.choice((3, 4)),
        contrast=rng.choice((0.4, 0.6, 0.8)),
        rank=rng.choice((4, 8, 16)),
        steps=rng.choice((200, 260, 320)),
        learning_rate=round(10 ** rng.uniform(-2.8, -2.3), 5),
        target_modules=rng.choice(("all-linear", "all-linear", "mlp", "attention")),
        alpha=rng.choice((0.5, 1.0, 1.0, 2.0)),
    )


def draw_verbs(rng: random.Random, seed: int, axes: MathAxes) -> Verbs:
    """New verbs for both adapters, those of one adapter with different moves."""
    chosen = rng.sample(new_verbs(seed), 2 * axes.verbs)
    half = len(MOVES) // 2
    kinds = (MOVES[:half], MOVES[half:]) if axes.division == "types" else (MOVES, MOVES)
    one, two = (rng.sample(kind, axes.verbs) for kind in kinds)
    return (
        tuple(zip(chosen[: axes.verbs], one, strict=True)),
        tuple(zip(chosen[axes.verbs :], two, strict=True)),
    )


def math_world(
    seed: int, *, base: BaseRecipe | None = None, count: int = 3, items: int = ITEMS
) -> WorldSpec:
    """A base and `count` pairs of adapters of their own, each with one task of `items` problems.

    The axes of every set come from the seed; sets with a template that both adapters share and
    sets without one take turns, and odd seeds begin with the latter.
    """
    training, tasks, sets = list[TrainingSet](), dict[str, Sequence[Item]](), []
    for number in range(count):
        rng, name = random.Random(f"math trial:{seed}:{number}"), f"math-{number}"
        axes = draw_axes(rng, shared=(seed + number) % 2 == 0)
        verbs = draw_verbs(rng, seed, axes)
        pair, names = _pair(name, seed, axes, verbs)
        tasks[name] = target_items(
            names, verbs, template=axes.asked, count=items, seed=f"{seed}:{name}"
        )
        training += pair
        text = (
            "Each adapter knows verbs of its own, the target needs both. Templates: "
            f"{' and '.join(axes.templates)}, divided by {axes.division}."
        )
        sets.append(AdapterSet(name, "math", names, (name,), text, axes.plain()))
    return _spec(seed, base, training, tasks, sets)


def math_matrix(
    seed: int, base: BaseRecipe | None = None, *, items: int = MATRIX_ITEMS
) -> WorldSpec:
    """The matrix of the experiment: {at once, worked, program} x {two adapters, and a third one}.

    Three pairs of adapters learn the same verbs and answer at once, in worked steps, or by
    programs; the third adapter of a row is trained on the target problems in that form.
    """
    verbs = draw_verbs(random.Random(f"math matrix:{seed}"), seed, MATRIX)
    training, tasks, sets = list[TrainingSet](), dict[str, Sequence[Item]](), []
    for template, called in TEMPLATES.items():
        axes = dataclasses.replace(MATRIX, templates=(template, template))
        pair, names = _pair(template, seed, axes, verbs)
        name = f"{template}-target"
        examples = target_examples(verbs, template, EXAMPLES, f"{seed}:{name}")
        recipe = axes.recipe(own_seed(name, seed))
        text = f"the target itself, template {template}"
        training += [*pair, TrainingSet(name, text, tuple(examples), recipe)]
        tasks[template] = target_items(
            names, verbs, template=axes.asked, count=items, seed=f"{seed}:matrix"
        )
        for library, third in ((2, ""), (3, " and one for the target")):
            where = {
                "template": called,
                "library": library,
                "form": "question" if called == "plain" else "steps",
                "group": "both types",
            }
            one = AdapterSet(
                f"{template}-{library}-combination",
                "math",
                (*names, name)[:library],
                (template,),
                f"Two adapters with verbs of their own{third}, template {template}.",
                {**axes.plain(), **where},
            )
            sets.append(one)
    return _spec(seed, base, training, tasks, sets)


def _spec(
    seed: int,
    base: BaseRecipe | None,
    training: Sequence[TrainingSet],
    tasks: Mapping[str, Sequence[Item]],
    sets: Sequence[AdapterSet],
) -> WorldSpec:
    recipe = base or BASE
    placed = recipe.architecture == "gpt2"
    return WorldSpec(
        kind="math",
        seed=seed,
        training=tuple(training),
        tasks=tasks,
        adapter_sets=tuple(sets),
        base=recipe,
        words=world_words(seed),
        corpus=lambda draw_seed: ProblemsCorpus(seed, draw_seed, placed).draw,
        made_from={"fields": FIELDS, "farthest": FARTHEST, "training": TRAINING, "placed": placed},
        recipe={
            "base": dataclasses.asdict(recipe),
            "adapter_sets": {one.name: dict(one.axes) for one in sets},
        },
    )


def _pair(
    name: str, seed: int, axes: MathAxes, verbs: Verbs
) -> tuple[list[TrainingSet], tuple[str, str]]:
    """What the two adapters of a set are trained on, and their names."""
    pair = []
    for i, place in enumerate(("first", "second")):
        part = place if axes.division == "steps" else "whole"
        skill = VerbSkill(verbs[i], axes.templates[i], part, axes.contrast)
        own = f"{name}-{place}"
        examples: list[Example] = skill.examples(EXAMPLES, f"{seed}:{own}")
        recipe = axes.recipe(own_seed(own, seed), axes.alpha if i == 0 else 1.0)
        text = f"{axes.verbs} new verbs, template {axes.templates[i]}"
        pair.append(TrainingSet(own, text, tuple(examples), recipe))
    return pair, (pair[0].name, pair[1].name)
