"""Finds the cases of a world, and evaluates every system on each; results are stored as they come.

A case is a scenario that asks one of the three questions of the table of methods.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.evaluation import Ledger
from loraprobe.records import ItemResult
from loraprobe.routing import ROUTERS
from loraprobe.tasks import Task, load_task
from loraprobe_lab.experiments.methods.systems import ComparedSystem
from loraprobe_lab.experiments.runner import WorldEvaluator
from loraprobe_lab.world import Scenario, World, worlds_in

if TYPE_CHECKING:
    from loraprobe.composition import Router
    from loraprobe.pipeline.systems import SystemBuilder

Kind = Literal["two-hop", "keep-both", "step-by-step"]
KINDS: tuple[Kind, ...] = ("two-hop", "keep-both", "step-by-step")
FORM: Mapping[Kind, str] = {"two-hop": "question", "keep-both": "question", "step-by-step": "steps"}
ROLES: Mapping[Kind, tuple[str, str]] = {
    "two-hop": ("hop 1", "hop 2"),
    "keep-both": ("skill 1", "skill 2"),
    "step-by-step": ("facts", "steps"),
}
SHOWN = 20  # prompts of each adapter to which a router is fitted


@dataclass(frozen=True)
class MethodsCase:
    """One question in one world: two adapters and their tasks.

    `roles`: adapter -> its role in the question (`ROLES`), the same in every world.
    """

    kind: Kind
    world: World = field(repr=False)
    scenario: Scenario = field(repr=False)
    roles: Mapping[str, str]

    @property
    def name(self) -> str:
        """A name that is unique among the worlds of a run, and fit for a file."""
        return f"{self.world.path.resolve().name}.{self.scenario.name}"

    def prompts(self, limit: int | None) -> dict[str, list[str]]:
        """Adapter -> prompts of its kind, from items beyond `limit`, which are not evaluated.

        At most `SHOWN` each; {} if there are none. They contain no answer; a hop's prompt contains
        the answers of earlier hops, as another adapter would give them.
        """
        if limit is None:
            return {}
        left = [load_task(path).items[limit : limit + SHOWN] for path in self.scenario.tasks]
        if not all(left):
            return {}
        hops = [[item.hop_prompt(k) for item in left[0] if item.hops] for k in (0, 1)]
        of: dict[str, list[str]] = {
            "skill 1": [item.prompt for item in left[0]],
            "skill 2": [item.prompt for item in left[-1]],
            "hop 1": hops[0],
            "hop 2": hops[1],
            "facts": hops[0],
            "steps": [item.cot_prompt for item in left[0] if item.cot_prompt],
        }
        return {name: of[role] for name, role in self.roles.items()}


def cases_of(world: World) -> list[MethodsCase]:
    """The scenarios of a world that ask one of the questions, recognised by their tasks.

    keep-both: two adapters and two tasks without hops. two-hop: two adapters and one task, whose
    hops name one adapter each. step-by-step: two adapters and one task that is also asked in worked
    steps, whose first hop names one adapter and whose second names none. Excluded are scenarios
    whose second hop is unknown to the base or whose couples of the steps are invented: the
    literature predicts no success there (see the success map).
    """
    return [case for scenario in world.scenarios.values() for case in _case(world, scenario)]


def _case(world: World, scenario: Scenario) -> Iterator[MethodsCase]:
    names = list(scenario.adapters)
    if len(names) != 2 or not all(path.is_file() for path in scenario.tasks):
        return
    tasks = [load_task(path, 1) for path in scenario.tasks]
    if len(tasks) == 2 and not any(task.has_hops for task in tasks):
        yield _made("keep-both", world, scenario, names)
    elif len(tasks) == 1 and len(tasks[0].items[0].hops) == 2:
        item = tasks[0].items[0]
        first, second = (hop.adapter for hop in item.hops)
        promising = all(scenario.axes.get(k, v) == v for k, v in (("familiar", 1), ("invented", 0)))
        if {first, second} == set(names):
            yield _made("two-hop", world, scenario, [str(first), str(second)])
        elif first in names and second is None and item.cot_prompt and promising:
            names.remove(first)
            yield _made("step-by-step", world, scenario, [first, *names])


def _made(kind: Kind, world: World, scenario: Scenario, names: Sequence[str]) -> MethodsCase:
    return MethodsCase(kind, world, scenario, dict(zip(names, ROLES[kind], strict=True)))


def open_worlds(directories: Sequence[Path]) -> list[World]:
    """The worlds in these directories, or right below them.

    Raises UsageError for two worlds of one name, and for one that asks none of the questions;
    WorldError where there is no world.
    """
    found = [world for directory in directories for world in worlds_in(directory)]
    names = [world.path.resolve().name for world in found]
    for world, name in zip(found, names, strict=True):
        if names.count(name) > 1:
            raise UsageError(f"Two worlds are called {name}: give their directories other names.")
        if not cases_of(world):
            raise UsageError(
                f"{world.path} holds no scenario of two adapters that asks for two hops, for two "
                "skills or for new facts in worked steps; leave it out."
            )
    return found


@dataclass(frozen=True)
class CaseResults:
    """The results of one case.

    `results` name the base, singles by their role, and every system by its label; all in the form
    of the case's question. `refused`: label -> why it could not be built.
    """

    case: MethodsCase
    results: tuple[ItemResult, ...] = field(repr=False)
    refused: Mapping[str, str] = field(default_factory=dict)


def evaluate_cases(
    evaluator: WorldEvaluator, cases: Sequence[MethodsCase], systems: Sequence[ComparedSystem]
) -> list[CaseResults]:
    """The results of every case of a world; results in the ledgers are not computed again."""
    return [_CaseRun(evaluator, case).answers(systems) for case in cases]


class _CaseRun:
    """One case, the model in memory, and the results so far."""

    def __init__(self, evaluator: WorldEvaluator, case: MethodsCase) -> None:
        from loraprobe.pipeline.systems import baseline_systems

        self.evaluator, self.case = evaluator, case
        self.tasks: list[Task] = evaluator.tasks(case.scenario.tasks)
        self.ledger: Ledger = evaluator.ledger(case.name)
        self.form = FORM[case.kind]
        self.adapters = list(evaluator.adapters(case.scenario.adapters).values())
        self.baselines = baseline_systems(self.adapters)
        self.learned: dict[str, Any] = {}  # by routers that need prompts

    def answers(self, systems: Sequence[ComparedSystem]) -> CaseResults:
        refused: dict[str, str] = {}
        for baseline in self.baselines:
            self.evaluator.evaluate(self.ledger, baseline, self.tasks, {"question", self.form})
        for at, system in enumerate(systems, 1):
            if system.family != "chain" or self.tasks[0].has_hops:
                try:
                    self._answer(system)
                except LoraprobeError as error:
                    refused[system.label] = str(error)
            self.evaluator.report(self.case.name, at, len(systems))
        asked = {system.label for system in systems} - set(refused)
        return CaseResults(self.case, tuple(self._results(asked)), refused)

    def _answer(self, compared: ComparedSystem) -> None:
        """Builds and evaluates a system unless its results exist."""
        label, part = compared.label, "question" if compared.family == "chain" else self.form
        answered = all(
            self.ledger.get(label, task.name, part, item.id)
            for task in self.tasks
            for item in task.items
        )
        if answered:
            return
        builder = compared.builder(self.adapters)
        spec = compared.spec
        if compared.family == "router" and ROUTERS.make(spec).needs_prompts:
            builder = replace(builder, routers={spec: self._fitted(builder, spec)})
        system = compared.build(builder)
        self.evaluator.evaluate(self.ledger, system, self.tasks, {self.form})

    def _fitted(self, builder: SystemBuilder, spec: str) -> Router:
        """The router fitted to prompts that are not evaluated; all of a case to the same ones.

        Raises UsageError if the limit leaves no item for it.
        """
        from loraprobe.pipeline.router_fitting import fitted_to

        router = ROUTERS.make(spec)
        if not self.learned:
            prompts = self.case.prompts(self.evaluator.limit)
            if not prompts:
                raise UsageError(f"No items of {self.case.name} are left to learn from.")
            adapters = builder.prepared.adapters
            self.learned = fitted_to(router, self.evaluator.scorer, adapters, prompts).state()
        return router.with_state(self.learned)

    def _results(self, asked: set[str]) -> Iterator[ItemResult]:
        """The results in the form of the question, singles under their roles.

        A chain needs no worked steps, but counts under the form in which the others are asked.
        """
        roles = self.case.roles
        for row in self.ledger:
            if row.system == "chain":
                if row.part == "question" and "chain" in asked:
                    yield replace(row, part=self.form)
            elif row.system in roles:
                yield replace(row, system=roles[row.system])
            elif row.system == "base" or row.system in asked:
                yield row
