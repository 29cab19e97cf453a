"""`loraprobe lab methods`: builds the worlds, evaluates every system, writes the pages."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from loraprobe_lab.experiments.methods.evaluating import (
    CaseResults,
    cases_of,
    evaluate_cases,
    open_worlds,
)
from loraprobe_lab.experiments.methods.page import methods_pages
from loraprobe_lab.experiments.methods.portfolio import portfolio_files
from loraprobe_lab.experiments.methods.systems import ComparedSystem, all_systems
from loraprobe_lab.experiments.methods.table import tabulated
from loraprobe_lab.experiments.pages import Pages
from loraprobe_lab.experiments.runner import (
    BaseInfo,
    Bases,
    ExperimentRun,
    Shape,
    WorldEvaluator,
    Worlds,
    small_base,
)
from loraprobe_lab.training.pretrain import BaseRecipe
from loraprobe_lab.world import World
from loraprobe_lab.worlds.small import methods_world
from loraprobe_lab.worlds.spec import WorldSpec

BASES = Bases(architectures=("llama", "gpt2"), hidden=(96,), seeds=(0, 1, 2, 3))
PAUSE = 60.0  # seconds between two times that the pages are written


@dataclass(frozen=True)
class MethodsPlan:
    """The worlds and systems of the experiment.

    worlds: directories of existing worlds; without any, those of `spec` are trained on `bases`.
    methods, routers: if any is named, only these are compared.
    """

    worlds: tuple[Path, ...] = ()
    bases: Bases = BASES
    spec: Callable[[int, BaseRecipe], WorldSpec] = methods_world
    shape: Shape = small_base
    methods: tuple[str, ...] = ()
    routers: tuple[str, ...] = ()
    strengths: tuple[float | None, ...] = (None, 1.0)

    def systems(self) -> list[ComparedSystem]:
        """What is compared. Raises UsageError for a method or router that is not there."""
        return all_systems(self.methods, self.routers, self.strengths)


WorldCases = tuple[World, list[CaseResults]]


def try_methods(run: ExperimentRun, plan: MethodsPlan | None = None) -> Pages:
    """Makes the table (methods.md, methods.json, methods.svg), and from it the default systems of
    merge-and-eval (portfolio.json, portfolio.md).

    The run's limit cuts the tasks; routers that need prompts are fitted to the items beyond it.
    Raises UsageError for an unknown method, router or world, or a missing matplotlib, before
    anything is trained.
    """
    plan = plan or MethodsPlan()
    systems, command = plan.systems(), run.command("try_methods()")
    worlds: Worlds = [
        (BaseInfo(world.path.resolve().name, "", world.seed), partial(World.load, world.path))
        for world in open_worlds(plan.worlds)
    ]

    def answer(evaluator: WorldEvaluator, base: BaseInfo) -> WorldCases:
        return evaluator.world, evaluate_cases(evaluator, cases_of(evaluator.world), systems)

    def pages(found: Sequence[WorldCases], missing: Sequence[str]) -> Pages:
        answers = [one for _, answered in found for one in answered]
        made = [world for world, _ in found]
        table = methods_pages(tabulated(answers, systems), answers, made, command, missing)
        return replace(table, more=portfolio_files(json.loads(table.json)))

    return run.run_worlds(
        worlds or run.small_worlds(plan.bases, plan.spec, plan.shape), answer, pages
    )
