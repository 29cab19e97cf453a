"""The worlds that every method is tried on: two hops, two skills, and new facts x worked steps."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from loraprobe_lab.facts import FactSizes
from loraprobe_lab.kit import Kit
from loraprobe_lab.plans import MLP
from loraprobe_lab.pretrain import BaseRecipe
from loraprobe_lab.small import SmallPlan, small_kit

SCENARIOS = ("disjoint", "skill-and-facts", "keep-both")


@dataclass(frozen=True)
class MethodsPlan:
    """How many people there are, and how long adapters are trained; `effort` scales the steps."""

    sizes: FactSizes = field(
        default_factory=lambda: FactSizes(
            familiar=200, newcomers=100, strangers=100, cities=40, reserve=20
        )
    )
    effort: float = 1.0


def methods_kit(seed: int, base: BaseRecipe, plan: MethodsPlan | None = None) -> Kit:
    """Six adapters on one small base, and the three questions: see `loraprobe_lab.plans`.

    The facts go into the MLPs of either architecture. No adapter here was chosen by how any
    method fares on it.
    """
    plan = plan or MethodsPlan()
    small = SmallPlan(sizes=plan.sizes, base=base, effort=plan.effort)
    kit = small_kit(
        ("two-hop", "skill-and-facts", "keep-both"), seed=seed, plan=small, only=SCENARIOS
    )
    lessons = tuple(
        dataclasses.replace(lesson, recipe=dataclasses.replace(lesson.recipe, target_modules="mlp"))
        if lesson.recipe.target_modules == MLP
        else lesson
        for lesson in kit.lessons
    )
    return dataclasses.replace(kit, kind="methods", lessons=lessons)
