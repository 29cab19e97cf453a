"""`loraprobe lab methods`: builds the worlds, asks every system, writes the pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from loraprobe_lab.experiments.methods.asking import CaseAnswers, answer_cases
from loraprobe_lab.experiments.methods.cases import cases_of, open_worlds
from loraprobe_lab.experiments.methods.page import methods_pages
from loraprobe_lab.experiments.methods.systems import ComparedSystem, all_systems
from loraprobe_lab.experiments.methods.table import tabulated
from loraprobe_lab.experiments.pages import Pages
from loraprobe_lab.experiments.runner import Asker, BaseInfo, Bases, Run, Shape, Worlds, small_base
from loraprobe_lab.training.pretrain import BaseRecipe
from loraprobe_lab.world import World
from loraprobe_lab.worlds.small import methods_world
from loraprobe_lab.worlds.spec import WorldSpec

BASES = Bases(architectures=("llama", "gpt2"), hidden=(96,), seeds=(0, 1, 2, 3))
PAUSE = 60.0  # seconds between two times that the pages are written


@dataclass(frozen=True)
class MethodsPlan:
    """What is run.

    Worlds that exist already lie in the directories `worlds`; without any, those of `spec` are
    trained on `bases`. Only these methods and routers take part where some are named.
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


WorldAnswers = tuple[World, list[CaseAnswers]]


def try_methods(run: Run, plan: MethodsPlan | None = None) -> Pages:
    """Makes the table: methods.md, methods.json, methods.svg.

    The run's limit cuts the tasks, and what it leaves unasked shows routers that learn from
    prompts what each adapter is for. Raises UsageError for a method, router or world that is not
    there, or a missing matplotlib, before anything is trained.
    """
    plan = plan or MethodsPlan()
    systems, command = plan.systems(), run.command("try_methods()")
    worlds: Worlds = [
        (BaseInfo(world.path.resolve().name, "", world.seed), partial(World.load, world.path))
        for world in open_worlds(plan.worlds)
    ]

    def answer(asker: Asker, base: BaseInfo) -> WorldAnswers:
        return asker.world, answer_cases(asker, cases_of(asker.world), systems)

    def pages(found: Sequence[WorldAnswers], missing: Sequence[str]) -> Pages:
        answers = [one for _, answered in found for one in answered]
        made = [world for world, _ in found]
        return methods_pages(tabulated(answers, systems), answers, made, command, missing)

    return run.over(worlds or run.small_worlds(plan.bases, plan.spec, plan.shape), answer, pages)
