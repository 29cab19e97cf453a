"""The training data of one adapter of the math world: problems with new verbs in a template."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraprobe_lab.training.batches import Example
from loraprobe_lab.worlds.math.problems import (
    AS_PROGRAM,
    FAMILIAR,
    PROGRAM_PATTERN,
    SHOW_STEPS,
    Problem,
    Verb,
    draw_problem,
)

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
        return Example(problem.question() + AS_PROGRAM, " " + problem.program())
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
