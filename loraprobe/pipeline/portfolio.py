"""Which merges and routers are evaluated: those that are asked for, and proven ones.

`portfolio.json` lists proven systems by the kind of question, with what they measured. `loraprobe
lab methods` chooses them on worlds of known truth and writes the file; docs/merging.md and
examples/reproduction/portfolio.md tell how.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from loraprobe.adapters import Adapter
from loraprobe.adapters.experts import unroutable
from loraprobe.composition import Router
from loraprobe.formatting import count
from loraprobe.merging import METHODS
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
    names = [field.name for field in fields(Proven)]
    found = {}
    for row in document["kinds"]:
        systems = [document | row | system for system in row["systems"]]
        found[row["kind"]] = tuple(Proven(*map(system.get, names)) for system in systems)
    return found


@dataclass(frozen=True)
class Selection:
    """Which merges and routers the options ask for of these adapters.

    tasks: those that are given, before items are set apart. Without them the systems that a kind of
    question adds are left out.
    """

    options: Options
    adapters: Sequence[Adapter]
    tasks: Sequence[Task] = ()

    @property
    def added(self) -> list[Proven]:
        """The proven systems of this kind of question that join the defaults.

        Methods join where `--method` stands at its default, routers where `--router` does, and none
        where `--system` names what is evaluated.
        """
        options, usual = self.options, Options()
        joins = {True: options.routers == usual.routers, False: options.methods == usual.methods}
        proven = () if options.systems else proven_systems(self.tasks)
        return [one for one in proven if joins[one.spec in ROUTERS]]

    @property
    def unfit(self) -> Mapping[str, str]:
        """Default routers that cannot be used with these adapters and tasks, each with a note.

        A router that the user named is not left out; it raises an error later.
        """
        usual = Options().routers
        default = usual if self.options.routers == usual else ()
        routers = [
            spec
            for spec in (*default, *(one.spec for one in self.added))
            if spec in ROUTERS and spec not in self.options.systems
        ]
        found = {spec: self._why_unfit(ROUTERS.make(spec)) for spec in routers}
        return {spec: f"{spec} is left out: {why}" for spec, why in found.items() if why}

    def _why_unfit(self, router: Router) -> str:
        """Why a router cannot be used; "" if it can."""
        for holder in self.adapters if not router.weighs_whole else ():
            if what := unroutable(holder):
                return f"{holder.name} {what}, which gates that look at the token cannot weigh."
        if not router.needs_prompts or not isinstance(parts := self.items_for_routers, str):
            return ""
        return (
            f"it learns from questions that serve nothing else, and {parts}. Give each adapter "
            "prompts of its own by --router-prompts NAME=FILE."
        )

    @property
    def items_for_routers(self) -> TaskSplit | str | None:
        """The tasks in two parts, of which one is for routers to learn from; or why there is none.

        None where every adapter has prompts of its own.
        """
        adapters, tasks = self.adapters, self.tasks
        if {a.name for a in adapters} <= {name for name, _ in self.options.router_prompts}:
            return None
        texts = [task.name for task in tasks if any(not item.answers for item in task.items)]
        if texts:
            return f"task {texts[0]} holds texts and no questions"
        if len(tasks) < len(adapters):
            few = f"{count(len(tasks), 'task')} for {count(len(adapters), 'adapter')}"
            return f"with {few} not every adapter has questions of its own"
        return split_for_router(tasks, self.options)

    @property
    def specs(self) -> list[str]:
        """The merges, the routers and, where a task has hops, the chain."""
        options, methods = self.options, list(self.options.methods)
        if options.weights and methods and not any(METHODS.make(m).takes_weights for m in methods):
            methods.append("task_arithmetic")  # otherwise the weights would have no effect
        specs = [*methods, *options.routers, *(one.spec for one in self.added)]
        specs += ["chain"] if any(task.has_hops for task in self.tasks) else []
        if options.systems:
            reserved = {"base", *(a.name for a in self.adapters), "shrunk", "random-partner"}
            extra = [s for s in options.systems if s not in specs and s not in reserved]
            specs = [spec for spec in specs if spec in options.systems] + extra
        left_out = self.unfit
        return [spec for spec in dict.fromkeys(specs) if spec not in left_out]

    @property
    def learning(self) -> dict[str, Router]:
        """The routers asked for that learn from prompts, by spec, those of `--system` included."""
        asked = (*self.options.routers, *self.specs)
        routers = {spec: ROUTERS.make(spec) for spec in dict.fromkeys(asked) if spec in ROUTERS}
        return {spec: router for spec, router in routers.items() if router.needs_prompts}
