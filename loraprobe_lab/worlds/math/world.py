"""The math worlds: sets with axes drawn at random, and the matrix of the experiment."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loraprobe_lab.training.batches import Example
from loraprobe_lab.training.pretrain import BaseRecipe
from loraprobe_lab.training.train import Recipe
from loraprobe_lab.worlds.libraries import TrainedSet, contents_of
from loraprobe_lab.worlds.math.problems import (
    FARTHEST,
    FIELDS,
    MOVES,
    TRAINING,
    ProblemsCorpus,
    Verb,
    new_verbs,
    world_words,
)
from loraprobe_lab.worlds.math.skills import VerbSkill, target_examples, target_items
from loraprobe_lab.worlds.spec import TrainingSet, WorldSpec, own_seed

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
    sets = []
    for number in range(count):
        rng, name = random.Random(f"math trial:{seed}:{number}"), f"math-{number}"
        axes = draw_axes(rng, shared=(seed + number) % 2 == 0)
        verbs = draw_verbs(rng, seed, axes)
        pair, names = _pair(name, seed, axes, verbs)
        asked = target_items(names, verbs, template=axes.asked, count=items, seed=f"{seed}:{name}")
        text = (
            "Each adapter knows verbs of its own, the target needs both. Templates: "
            f"{' and '.join(axes.templates)}, divided by {axes.division}."
        )
        sets.append(TrainedSet(name, "math", pair, {name: asked}, text, axes.plain()))
    return _spec(seed, base, sets)


def math_matrix(
    seed: int, base: BaseRecipe | None = None, *, items: int = MATRIX_ITEMS
) -> WorldSpec:
    """The matrix of the experiment: {at once, worked, program} x {two adapters, and a third one}.

    Three pairs of adapters learn the same verbs and answer at once, in worked steps, or by
    programs; the third adapter of a row is trained on the target problems in that form.
    """
    verbs = draw_verbs(random.Random(f"math matrix:{seed}"), seed, MATRIX)
    sets = []
    for template, called in TEMPLATES.items():
        axes = dataclasses.replace(MATRIX, templates=(template, template))
        pair, names = _pair(template, seed, axes, verbs)
        name = f"{template}-target"
        examples = target_examples(verbs, template, EXAMPLES, f"{seed}:{name}")
        recipe = axes.recipe(own_seed(name, seed))
        text = f"the target itself, template {template}"
        target = TrainingSet(name, text, tuple(examples), recipe)
        asked = target_items(names, verbs, template=axes.asked, count=items, seed=f"{seed}:matrix")
        for library, third in ((2, ""), (3, " and one for the target")):
            where = {
                "template": called,
                "library": library,
                "form": "question" if called == "plain" else "steps",
                "group": "both types",
            }
            one = TrainedSet(
                f"{template}-{library}-combination",
                "math",
                [*pair, target][:library],
                {template: asked},
                f"Two adapters with verbs of their own{third}, template {template}.",
                {**axes.plain(), **where},
            )
            sets.append(one)
    return _spec(seed, base, sets)


def _spec(seed: int, base: BaseRecipe | None, sets: Sequence[TrainedSet]) -> WorldSpec:
    recipe = base or BASE
    placed = recipe.architecture == "gpt2"
    return WorldSpec(
        kind="math",
        seed=seed,
        **contents_of(sets),
        base=recipe,
        words=world_words(seed),
        corpus=lambda draw_seed: ProblemsCorpus(seed, draw_seed, placed).draw,
        made_from={"fields": FIELDS, "farthest": FARTHEST, "training": TRAINING, "placed": placed},
        recipe={
            "base": recipe.as_dict(),
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
