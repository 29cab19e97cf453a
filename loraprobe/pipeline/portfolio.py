"""What merge-and-eval evaluates beside its fixed systems, by the kind of question.

`portfolio.json` lists the systems and what they measured. `loraprobe lab methods` chooses them on
worlds of known truth and writes the file; docs/merging.md and examples/reproduction/portfolio.md
tell how.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loraprobe.adapters import Adapter
from loraprobe.adapters.experts import unroutable
from loraprobe.composition import Router
from loraprobe.formatting import count
from loraprobe.options import Options
from loraprobe.pipeline.task_split import TaskSplit, split_for_router
from loraprobe.routing import ROUTERS
from loraprobe.tasks import Task

Kind = Literal["one task", "one task, worked steps", "several tasks"]
FILE = Path(__file__).with_name("portfolio.json")


@dataclass(frozen=True)
class Proven:
    """A system that proved itself on worlds of known truth.

    `value` is its mean `figure` over so many worlds, `beside` that of the best of the fixed systems
    in each world.
    """

    spec: str
    figure: str
    value: float
    beside: float
    worlds: int
    source: str

    @property
    def note(self) -> str:
        """Why it is evaluated, for the report."""
        return (
            f"{self.spec} is evaluated because it proved itself: {self.figure} {self.value:.2f}, "
            f"against {self.beside:.2f} for the best of the other default systems, on "
            f"{self.worlds} small worlds of known truth ({self.source})."
        )


def kind_of(tasks: Sequence[Task]) -> Kind:
    """The kind of question that the tasks ask."""
    if len(tasks) > 1:
        return "several tasks"
    return "one task, worked steps" if any(task.has_cot for task in tasks) else "one task"


def proven_systems(tasks: Sequence[Task]) -> tuple[Proven, ...]:
    """The systems for this kind of question; none without a task."""
    return _read().get(kind_of(tasks), ()) if tasks else ()


@functools.cache
def _read() -> dict[str, tuple[Proven, ...]]:
    document = json.loads(FILE.read_text(encoding="utf-8"))
    return {
        row["kind"]: tuple(
            Proven(
                system["spec"],
                row["figure"],
                system["value"],
                system["beside"],
                row["worlds"],
                document["source"],
            )
            for system in row["systems"]
        )
        for row in document["kinds"]
    }


def added_systems(options: Options, tasks: Sequence[Task]) -> list[Proven]:
    """The proven systems of this kind of question that join the defaults.

    Methods join where `--method` stands at its default, routers where `--router` does, and none
    where `--system` names what is evaluated.
    """
    default = Options()
    joins = {True: options.routers == default.routers, False: options.methods == default.methods}
    proven = () if options.systems else proven_systems(tasks)
    return [one for one in proven if joins[one.spec in ROUTERS]]


def unfit_routers(
    options: Options, adapters: Sequence[Adapter], tasks: Sequence[Task] = ()
) -> Mapping[str, str]:
    """Default routers that cannot be used with these adapters and tasks, each with a note.

    A router that the user named is not left out; it raises an error later.
    """
    usual = Options().routers
    default = usual if options.routers == usual else ()
    routers = [
        spec
        for spec in (*default, *(one.spec for one in added_systems(options, tasks)))
        if spec in ROUTERS and spec not in options.systems
    ]
    found = {spec: _why_unfit(ROUTERS.make(spec), options, adapters, tasks) for spec in routers}
    return {spec: f"{spec} is left out: {why}" for spec, why in found.items() if why}


def _why_unfit(
    router: Router, options: Options, adapters: Sequence[Adapter], tasks: Sequence[Task]
) -> str:
    """Why a router cannot be used; "" if it can."""
    for holder in adapters if not router.weighs_whole else ():
        if what := unroutable(holder):
            return f"{holder.name} {what}, which gates that look at the token cannot weigh."
    if not router.needs_prompts:
        return ""
    parts = items_for_routers(options, adapters, tasks)
    if not isinstance(parts, str):
        return ""
    return (
        f"it learns from questions that serve nothing else, and {parts}. Give each adapter prompts "
        "of its own by --router-prompts NAME=FILE."
    )


def items_for_routers(
    options: Options, adapters: Sequence[Adapter], tasks: Sequence[Task]
) -> TaskSplit | str | None:
    """The tasks in two parts, of which one is for routers to learn from; or why there is none.

    None where every adapter has prompts of its own.
    """
    if {a.name for a in adapters} <= {name for name, _ in options.router_prompts}:
        return None
    texts = [task.name for task in tasks if any(not item.answers for item in task.items)]
    if texts:
        return f"task {texts[0]} holds texts and no questions"
    if len(tasks) < len(adapters):
        few = f"{count(len(tasks), 'task')} for {count(len(adapters), 'adapter')}"
        return f"with {few} not every adapter has questions of its own"
    return split_for_router(tasks, options)
