"""The matrix of an experiment: one cell for every size, set of questions, template and library.

The adapter sets of its worlds have the axes `template`, `library` (2 or 3), `form` (of the question
to compositions: "question" or "steps") and `joint`, the adapter that was trained on both hops, for
comparison.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from loraprobe.defaults import ALPHA
from loraprobe.evaluation import System, gains
from loraprobe.evaluation.statistics import wilson
from loraprobe.records import Gain, Interval, ItemResult
from loraprobe_lab.experiments.runner import BaseInfo, WorldEvaluator, WorldResults
from loraprobe_lab.world import Scenario

METHODS = ("uniform", "sum", "arrow")  # compositions of weights; the chain is evaluated too
MARGIN = 0.05
ALL = "all sizes"  # in place of one
Role = Literal["composition", "baseline", "reference"]


def system_name(scenario: Scenario, method: str) -> str:
    """The name of a composition of an adapter set, unique in its world."""
    return f"{scenario.name}:{method}"


def system_names(scenario: Scenario, methods: Sequence[str] = METHODS) -> list[str]:
    return [system_name(scenario, method) for method in methods]


def evaluate_world(evaluator: WorldEvaluator, base: BaseInfo) -> WorldResults:
    """Evaluates base, singles, joint adapters and every composition; known results are kept.

    A world without worked steps is asked at once only. A chain needs no worked steps. If
    compositions are asked step by step, it has to beat the single adapters in either form, as they
    do: its answer counts under the form of its set.
    """
    scenarios = tuple(evaluator.world.scenarios.values())
    tasks = evaluator.tasks(path for scenario in scenarios for path in scenario.tasks)
    systems = _systems(evaluator, scenarios)
    results = evaluator.evaluate_all(
        base.name, [(system, tasks, parts) for system, parts in systems]
    )
    forms = {system_name(s, "chain"): str(s.axes["form"]) for s in scenarios}
    counted = [
        replace(row, part=forms[row.system])
        if row.system in forms and row.part == "question"
        else row
        for row in results
    ]
    return WorldResults(base, scenarios, tuple(counted))


def _systems(
    evaluator: WorldEvaluator, scenarios: Sequence[Scenario]
) -> list[tuple[System, frozenset[str]]]:
    """Every system with the forms in which it is asked; a chain asks the hops.

    No router is fitted here, so none that learns takes part. The target adapter is no part of a
    chain, so that only the library of the two hops has one.
    """
    from loraprobe.options import Options
    from loraprobe.pipeline.systems import SystemBuilder, baseline_systems
    from loraprobe.pipeline.transforms import Prepared

    names = [name for scenario in scenarios for name in scenario.adapters]
    joint = {str(scenario.axes.get("joint")) for scenario in scenarios}
    names += sorted(joint & set(evaluator.world.adapters))
    adapters = evaluator.adapters(names)
    forms = frozenset({"question", *(str(s.axes["form"]) for s in scenarios)})
    found = [(system, forms) for system in baseline_systems(list(adapters.values()))]
    for scenario in scenarios:
        chosen = tuple(adapters[name] for name in scenario.adapters)
        builder = SystemBuilder(chosen, Prepared(chosen), Options())
        own = forms if scenario.axes["form"] == "question" else frozenset({"steps"})
        chain = ("chain",) if scenario.axes["library"] == 2 else ()
        for method in (*METHODS, *chain):
            system = builder.build(method)
            found.append((replace(system, name=system_name(scenario, method)), own))
    return found


def groups_of(scenario: Scenario) -> dict[str, str]:
    """Task -> its set of questions: the axis `group`, else the task's name.

    Templates may ask the same questions in their own wording; their tasks are then one group.
    """
    group = scenario.axes.get("group")
    return {path.stem: str(group) if group else path.stem for path in scenario.tasks}


@dataclass(frozen=True)
class MatrixCell:
    """The results of one system on one set of questions, over all worlds of a size.

    `score` is exact match in the form in which the adapter set is asked, with Wilson's interval
    over persons. `gain` is over the best of base and singles in their better form, paired, with its
    interval; `against` names that baseline. Base and singles ("baseline") and the joint adapter
    ("reference") have no gain.
    """

    size: str
    group: str
    template: str
    library: int
    system: str
    role: Role
    form: str
    score: float
    score_ci95: Interval
    n: int
    worlds: int
    gain: float | None = None
    gain_ci95: Interval | None = None
    against: str = ""

    def gains(self, margin: float) -> bool:
        """Whether the gain's interval lies above the margin."""
        return self.gain_ci95 is not None and self.gain_ci95[0] > margin


@dataclass(frozen=True, eq=False)
class Matrix:
    """All worlds of one run. Pools the worlds of a size; each world is a stratum."""

    worlds: tuple[WorldResults, ...]
    margin: float = MARGIN
    _pooled: dict[Any, list[ItemResult]] = field(default_factory=dict, init=False, repr=False)

    @property
    def sizes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(world.base.size for world in self.worlds))

    @property
    def scenarios(self) -> tuple[Scenario, ...]:
        """The adapter sets, which all worlds share."""
        return self.worlds[0].scenarios

    @property
    def groups(self) -> tuple[str, ...]:
        """The sets of questions, in order."""
        return tuple(dict.fromkeys(g for s in self.scenarios for g in groups_of(s).values()))

    @property
    def templates(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(s.axes["template"]) for s in self.scenarios))

    def scenario(self, template: str, library: int) -> Scenario:
        """The adapter set of that template and library."""
        return next(
            scenario
            for scenario in self.scenarios
            if (scenario.axes["template"], scenario.axes["library"]) == (template, library)
        )

    def of_size(self, size: str) -> list[WorldResults]:
        return [world for world in self.worlds if size in (ALL, world.base.size)]

    def results(self, size: str, group: str, *scenarios: Scenario) -> list[ItemResult]:
        """The results of a size on a set of questions, in the tasks of these adapter sets."""
        key = (size, group, frozenset(path for s in scenarios for path in s.tasks))
        if key not in self._pooled:
            tasks = {t for s in scenarios for t, its in groups_of(s).items() if its == group}
            self._pooled[key] = [
                replace(row, task=f"{group}@{world.base.name}")
                for world in self.of_size(size)
                for row in world.results
                if row.task in tasks
            ]
        return self._pooled[key]

    def gain_over_singles(
        self,
        size: str,
        group: str,
        scenario: Scenario,
        methods: Sequence[str] = METHODS,
        form: str | None = None,
        alpha: float = ALPHA,
    ) -> Gain | None:
        """The gain of the best of these methods over the best of base and single adapters."""
        return best_gain(
            self.results(size, group, scenario),
            system_names(scenario, methods),
            ["base", *scenario.adapters],
            form or str(scenario.axes["form"]),
            self.margin,
            alpha,
        )

    def gain_over_set(
        self,
        size: str,
        group: str,
        one: Scenario,
        other: Scenario,
        form: str,
        alpha: float = ALPHA,
    ) -> Gain | None:
        """The gain of the best composition of one adapter set over the best of another."""
        results = self.results(size, group, one, other)
        names, others = system_names(one), system_names(other)
        return best_gain(results, names, others, form, self.margin, alpha)

    def cells(self) -> list[MatrixCell]:
        """Every cell, in the order of sizes, groups, adapter sets, systems."""
        return [
            cell
            for size in self.sizes
            for group in self.groups
            for scenario in self.scenarios
            for cell in self._cells(size, group, scenario)
        ]

    def _cells(self, size: str, group: str, scenario: Scenario) -> Iterable[MatrixCell]:
        results, axes = self.results(size, group, scenario), scenario.axes
        form, present = str(axes["form"]), {row.system for row in results}
        rows: list[tuple[str, Role]] = [(name, "baseline") for name in ("base", *scenario.adapters)]
        rows += [(str(axes.get("joint")), "reference")]
        rows += [(method, "composition") for method in (*METHODS, "chain")]
        for system, role in rows:
            name = system_name(scenario, system) if role == "composition" else system
            if name not in present:
                continue
            found = None
            if role == "composition":
                found = self.gain_over_singles(size, group, scenario, (system,))
            yield MatrixCell(
                size,
                group,
                str(axes["template"]),
                int(axes["library"]),
                system,
                role,
                form,
                *share(results, [name], form),
                worlds=len(self.of_size(size)),
                gain=found.difference if found else None,
                gain_ci95=found.ci95 if found else None,
                against=found.against if found else "",
            )


def best_gain(
    results: Sequence[ItemResult],
    compositions: Sequence[str],
    baselines: Sequence[str],
    form: str,
    margin: float,
    alpha: float = ALPHA,
) -> Gain | None:
    """The gain of the best composition in this form over the best baseline in its better form.

    The lower end of `adjusted_ci95` is that of the named system, the upper end covers all
    compositions, both at the level 1 - alpha. None if nothing comparable was measured.
    """
    rows = [row for row in results if row.system not in compositions or row.part == form]
    systems = [System(name, "merge") for name in compositions]
    systems += [System(name, "adapter") for name in baselines]
    found = gains(rows, systems, margin=margin, alpha=alpha)
    if not found:
        return None
    top = max(row.adjusted_ci95[1] for row in found)
    return replace(found[0], adjusted_ci95=(found[0].adjusted_ci95[0], top))


def share(
    results: Sequence[ItemResult], systems: Sequence[str], form: str, alpha: float = ALPHA
) -> tuple[float, Interval, int]:
    """Share of right answers of a system, or the mean of it over several, with Wilson's interval of
    the level 1 - alpha.

    Items of one person in one world are one cluster; several systems' answers to one item are
    averaged first, so that they do not count as independent. Raises ValueError without results.
    """
    values: dict[tuple[str, str], list[float]] = {}
    groups: dict[tuple[str, str], tuple[str, str]] = {}
    for row in results:
        if row.system in systems and row.part == form:
            values.setdefault((row.task, row.item), []).append(row.value)
            groups[row.task, row.item] = (row.task, row.group)
    if not values:
        raise ValueError(f"{', '.join(systems)} gave no answers in the form {form}")
    means = np.array([np.mean(found) for found in values.values()])
    _, clusters = np.unique([str(groups[key]) for key in values], return_inverse=True)
    return float(means.mean()), wilson(means, clusters, 1 - alpha), len(means)
