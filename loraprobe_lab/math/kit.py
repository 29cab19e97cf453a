"""Kits of the math world: trials with axes drawn at random, and the matrix of the experiment."""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraprobe_lab.kit import Kit, Lesson, Trial
from loraprobe_lab.math.axes import Axes, draw_axes, draw_verbs, tabled, task_template
from loraprobe_lab.math.corpus import corpus, world_words
from loraprobe_lab.math.problems import FARTHEST, FIELDS, TRAINING, Verb
from loraprobe_lab.math.skills import Skill, TargetSkill, target_items
from loraprobe_lab.pretrain import BaseRecipe
from loraprobe_lab.train import Recipe

ITEMS = 2000
EXAMPLES = 2000
BASE = BaseRecipe(
    hidden=96, layers=3, heads=4, intermediate=240, initial=0.09, steps=950, batch_size=32,
    learning_rate=4e-3, warmup=50,
)  # fmt: skip
MATRIX = Axes(
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


def math_kit(
    seed: int, *, base: BaseRecipe | None = None, trials: int = 3, items: int = ITEMS
) -> Kit:
    """A base and `trials` pairs of adapters of their own, each with one task of `items` problems.

    The axes of every trial come from the seed; trials with a template that both adapters share
    and trials without one take turns, and odd seeds begin with the latter.
    """
    made = [_random_trial(seed, number, items) for number in range(trials)]
    return _kit(seed, base, made)


def math_matrix_kit(
    seed: int, base: BaseRecipe | None = None, *, items: int = ITEMS, axes: Axes = MATRIX
) -> Kit:
    """The matrix of the experiment: {at once, worked, program} x {two adapters, and a third one}.

    Three pairs of adapters learn the same verbs and answer at once, in worked steps, or by
    programs; the third adapter of a row is trained on the target problems in that form.
    """
    verbs = draw_verbs(random.Random(f"math matrix:{seed}"), seed, axes)
    made = [
        trial
        for template in ("at-once", "worked", "program")
        for trial in _row(seed, template, verbs, axes, items)
    ]
    return _kit(seed, base, made)


@dataclass(frozen=True)
class _Made:
    """A trial with what it needs; lessons and tasks may come in several trials."""

    trial: Trial
    lessons: tuple[Lesson, ...]
    tasks: Mapping[str, Sequence[Mapping[str, Any]]]


def _kit(seed: int, base: BaseRecipe | None, made: Sequence[_Made]) -> Kit:
    recipe = base or BASE
    placed = recipe.architecture == "gpt2"
    lessons = {lesson.name: lesson for row in made for lesson in row.lessons}
    return Kit(
        kind="math",
        seed=seed,
        words=world_words(seed),
        corpus=corpus(seed, placed),
        base=recipe,
        lessons=tuple(lessons.values()),
        tasks={name: items for row in made for name, items in row.tasks.items()},
        trials=tuple(row.trial for row in made),
        made_from={"fields": FIELDS, "farthest": FARTHEST, "training": TRAINING, "placed": placed},
        recipe={
            "base": recipe.as_dict(),
            "trials": {row.trial.name: dict(row.trial.axes) for row in made},
        },
    )


def _random_trial(seed: int, number: int, items: int) -> _Made:
    rng, name = random.Random(f"math trial:{seed}:{number}"), f"math-{number}"
    axes = draw_axes(rng, shared=(seed + number) % 2 == 0)
    verbs = draw_verbs(rng, seed, axes)
    lessons = _pair(name, seed, axes, verbs)
    template = task_template(axes)
    task = target_items(
        (lessons[0].name, verbs[0]),
        (lessons[1].name, verbs[1]),
        template=template,
        count=items,
        seed=f"{seed}:{name}",
    )
    trial = Trial(
        name,
        "math",
        tuple(lesson.name for lesson in lessons),
        (name,),
        f"Each adapter knows verbs of its own, the target needs both. Templates: "
        f"{' and '.join(axes.templates)}, divided by {axes.division}.",
        tabled(axes),
    )
    return _Made(trial, lessons, {name: task})


def _pair(
    name: str, seed: int, axes: Axes, verbs: tuple[tuple[Verb, ...], tuple[Verb, ...]]
) -> tuple[Lesson, Lesson]:
    one, two = (
        _lesson(
            f"{name}-{place}",
            Skill(verbs[i], axes.templates[i], _part(axes, place), axes.contrast),
            axes.recipe(_seed(f"{name}-{place}", seed), axes.alpha if i == 0 else 1.0),
            f"{axes.verbs} new verbs, template {axes.templates[i]}",
            seed,
        )
        for i, place in enumerate(("first", "second"))
    )
    return one, two


def _part(axes: Axes, place: str) -> str:
    return place if axes.division == "steps" else "whole"


def _lesson(
    name: str, skill: Skill | TargetSkill, recipe: Recipe, description: str, seed: int
) -> Lesson:
    return Lesson(name, description, tuple(skill.examples(EXAMPLES, f"{seed}:{name}")), recipe)


def _seed(name: str, seed: int) -> int:
    """A seed of its own for every adapter: no two share their initial A."""
    return zlib.crc32(f"{name}:{seed}".encode())


def _row(
    seed: int,
    template: str,
    verbs: tuple[tuple[Verb, ...], tuple[Verb, ...]],
    axes: Axes,
    items: int,
) -> list[_Made]:
    """The trials of one template: with two adapters, and with the target's adapter added."""
    axes = Axes(**{**vars(axes), "templates": (template, template)})
    pair = _pair(template, seed, axes, verbs)
    target = _lesson(
        f"{template}-target",
        TargetSkill(*verbs, template),
        axes.recipe(_seed(f"{template}-target", seed)),
        f"the target itself, template {template}",
        seed,
    )
    task = target_items(
        (pair[0].name, verbs[0]),
        (pair[1].name, verbs[1]),
        template=task_template(axes),
        count=items,
        seed=f"{seed}:matrix",
    )
    made = []
    for library, lessons in (("2-combination", pair), ("3-combination", (*pair, target))):
        trial = Trial(
            f"{template}-{library}",
            "math",
            tuple(lesson.name for lesson in lessons),
            (template,),
            "Two adapters with verbs of their own"
            f"{' and one for the target' if len(lessons) > 2 else ''}, template {template}.",
            {**tabled(axes), "template": template, "library": library},
        )
        made.append(_Made(trial, lessons, {template: task}))
    return made
