"""`loraprobe lab methods`: builds the worlds, asks every system, writes the pages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from loraprobe.records import Progress
from loraprobe_lab.experiments.bases import BaseInfo, Bases, Shape, small_base
from loraprobe_lab.experiments.methods.asking import CaseAnswers, answer_cases
from loraprobe_lab.experiments.methods.cases import cases_of, open_worlds
from loraprobe_lab.experiments.methods.page import methods_pages
from loraprobe_lab.experiments.methods.systems import ComparedSystem, all_systems
from loraprobe_lab.experiments.methods.table import tabulated
from loraprobe_lab.experiments.pages import Pages
from loraprobe_lab.experiments.runner import Say, command_line, run_worlds, small_worlds
from loraprobe_lab.training.pretrain import BaseRecipe
from loraprobe_lab.world import World
from loraprobe_lab.worlds.small import methods_world
from loraprobe_lab.worlds.spec import WorldSpec

BASES = Bases(architectures=("llama", "gpt2"), hidden=(96,), seeds=(0, 1, 2, 3))
LIMIT = 80
PAUSE = 60.0  # seconds between two times that the pages are written


@dataclass(frozen=True)
class MethodsPlan:
    """What is run.

    Worlds that exist already lie in the directories `worlds`; without any, those of `spec` are
    trained on `bases`. Only these methods and routers take part where some are named. `limit` cuts
    the tasks, and what it leaves unasked shows routers that learn from prompts what each adapter
    is for; `arguments` are those of the command, for the page.
    """

    worlds: tuple[Path, ...] = ()
    bases: Bases = BASES
    spec: Callable[[int, BaseRecipe], WorldSpec] = methods_world
    shape: Shape = small_base
    methods: tuple[str, ...] = ()
    routers: tuple[str, ...] = ()
    strengths: tuple[float | None, ...] = (None, 1.0)
    limit: int | None = LIMIT
    arguments: tuple[str, ...] = ()

    def systems(self) -> list[ComparedSystem]:
        """What is compared. Raises UsageError for a method or router that is not there."""
        return all_systems(self.methods, self.routers, self.strengths)


WorldAnswers = tuple[World, list[CaseAnswers]]


def try_methods(
    output: str | Path,
    plan: MethodsPlan | None = None,
    *,
    progress: Progress | None = None,
    say: Say = lambda text: None,
) -> Pages:
    """Makes the table in the directory `output`: methods.md, methods.json, methods.svg.

    Raises UsageError for a method, router or world that is not there, or a missing matplotlib,
    before anything is trained.
    """
    plan, output = plan or MethodsPlan(), Path(output)
    systems = plan.systems()

    def answer(world: World, base: BaseInfo | None = None) -> WorldAnswers:
        cases, results = cases_of(world), output / "results"
        return world, answer_cases(
            world, cases, systems, results, limit=plan.limit, progress=progress
        )

    def write(found: Sequence[WorldAnswers], missing: Sequence[str]) -> Pages:
        answers = [one for _, answered in found for one in answered]
        pages = methods_pages(
            tabulated(answers, systems),
            answers,
            [world for world, _ in found],
            command=command_line(plan.arguments, "try_methods()"),
            missing=missing,
        )
        return pages.write(output)

    worlds: list[tuple[str, Callable[[], WorldAnswers]]] = [
        (world.path.resolve().name, partial(answer, world)) for world in open_worlds(plan.worlds)
    ]
    if not plan.worlds:
        worlds = small_worlds(plan.bases.each(plan.shape), plan.spec, output, answer, progress)
    return run_worlds(worlds, write, say=say, pause=PAUSE)
