"""Where a trial of the math world lies: its axes, drawn at random from a seed."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loraprobe_lab.math.corpus import new_verbs
from loraprobe_lab.math.problems import MOVES, Verb
from loraprobe_lab.train import Recipe

SHARED = (("worked", "worked"), ("program", "program"))
APART = (("worked", "at-once"), ("worked", "program"), ("at-once", "at-once"))


@dataclass(frozen=True)
class Axes:
    """What differs from trial to trial.

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
    def shared_template(self) -> bool:
        return self.templates[0] == self.templates[1] != "at-once"

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "shared_template": self.shared_template}

    def recipe(self, seed: int, alpha: float = 1.0) -> Recipe:
        """The recipe of one of the trial's adapters."""
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


def draw_axes(rng: random.Random, shared: bool) -> Axes:
    """Axes at random; `shared` says whether both adapters write in one template."""
    templates = rng.choice(SHARED if shared else APART)
    divisions = ("types", "verbs", "steps") if templates == SHARED[0] else ("types", "verbs")
    if not shared and rng.random() < 0.5:
        templates = (templates[1], templates[0])
    return Axes(
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


def draw_verbs(
    rng: random.Random, seed: int, axes: Axes
) -> tuple[tuple[Verb, ...], tuple[Verb, ...]]:
    """New verbs for both adapters, those of one adapter with different moves."""
    chosen = rng.sample(new_verbs(seed), 2 * axes.verbs)
    half = len(MOVES) // 2
    kinds = (MOVES[:half], MOVES[half:]) if axes.division == "types" else (MOVES, MOVES)
    one, two = (rng.sample(kind, axes.verbs) for kind in kinds)
    return (
        tuple(zip(chosen[: axes.verbs], one, strict=True)),
        tuple(zip(chosen[axes.verbs :], two, strict=True)),
    )


def task_template(axes: Axes) -> str:
    """The form in which the target is asked for: that of the first adapter that has one."""
    return next((t for t in axes.templates if t != "at-once"), "worked")


def tabled(axes: Axes) -> Mapping[str, Any]:
    """The axes as a trial records them: plain values only."""
    rows = axes.as_dict()
    return {key: "+".join(v) if isinstance(v, tuple) else v for key, v in rows.items()}
