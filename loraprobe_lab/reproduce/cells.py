"""The matrix itself: one cell for every size, name set, template, library and method."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from loraprobe.evaluation import gain
from loraprobe.intervals import wilson
from loraprobe.records import Gain, Interval, ItemResult
from loraprobe_lab.reproduce.measure import (
    METHODS,
    Answered,
    groups_of,
    pooled,
    system_name,
)
from loraprobe_lab.world import Scenario

MARGIN = 0.05
Role = Literal["composition", "baseline", "yardstick"]


@dataclass(frozen=True)
class Cell:
    """How one composition answered one set of questions, in all worlds of a size.

    `score` is exact match in the form in which the trial is asked, with Wilson's interval over
    persons. `gain` is over the best of base and singles in their better form, paired, with its
    interval; `against` names that baseline. Base and singles ("baseline") and the joint adapter
    ("yardstick") have no gain.
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


@dataclass(frozen=True, eq=False)
class Matrix:
    """All worlds of one run. Pools the worlds of a size; each world is a stratum."""

    worlds: tuple[Answered, ...]
    margin: float = MARGIN
    _pooled: dict[Any, list[ItemResult]] = field(default_factory=dict, init=False, repr=False)

    @property
    def sizes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(world.place.size for world in self.worlds))

    @property
    def scenarios(self) -> tuple[Scenario, ...]:
        """The trials, which all worlds share."""
        return self.worlds[0].scenarios

    @property
    def groups(self) -> tuple[str, ...]:
        """The sets of questions, in order."""
        return tuple(dict.fromkeys(g for s in self.scenarios for g in groups_of(s).values()))

    @property
    def templates(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(s.axes["template"]) for s in self.scenarios))

    def scenario(self, template: str, library: int) -> Scenario:
        """The trial of that template and library. Raises KeyError if there is none."""
        for scenario in self.scenarios:
            if (scenario.axes["template"], scenario.axes["library"]) == (template, library):
                return scenario
        raise KeyError(f"no trial of template {template} and library {library}")

    def of_size(self, size: str) -> list[Answered]:
        return [world for world in self.worlds if world.place.size == size]

    def results(self, size: str, group: str, *scenarios: Scenario) -> list[ItemResult]:
        """What was answered to a set of questions, as these trials ask it, in a size's worlds."""
        key = (size, group, frozenset(path for s in scenarios for path in s.tasks))
        if key not in self._pooled:
            self._pooled[key] = pooled(self.of_size(size), group, scenarios)
        return self._pooled[key]

    def best_gain(
        self, size: str, group: str, scenario: Scenario, form: str | None = None
    ) -> Gain | None:
        """What the best of uniform, sum and arrow gains over the best of base and singles."""
        names = [system_name(scenario, method) for method in METHODS]
        baselines = ["base", *scenario.adapters]
        return gain(
            self.results(size, group, scenario),
            names,
            baselines,
            form or str(scenario.axes["form"]),
            margin=self.margin,
        )

    def cells(self) -> list[Cell]:
        """Every cell, in the order of sizes, groups, trials, systems."""
        return [
            cell for size in self.sizes for group in self.groups for cell in self._of(size, group)
        ]

    def _of(self, size: str, group: str) -> Iterable[Cell]:
        for scenario in self.scenarios:
            results = self.results(size, group, scenario)
            present = {row.system for row in results}
            rows: list[tuple[str, Role]] = [("base", "baseline")]
            rows += [(name, "baseline") for name in scenario.adapters]
            rows += [(str(scenario.axes.get("joint")), "yardstick")]
            rows += [(method, "composition") for method in (*METHODS, "chain")]
            for name, role in rows:
                asked = system_name(scenario, name) if role == "composition" else name
                if asked in present:
                    yield self._cell(size, group, scenario, results, name, role)

    def _cell(
        self,
        size: str,
        group: str,
        scenario: Scenario,
        results: Sequence[ItemResult],
        system: str,
        role: Role,
    ) -> Cell:
        form = str(scenario.axes["form"])
        name = system_name(scenario, system) if role == "composition" else system
        score, interval, n = share(results, name, form)
        found = None
        if role == "composition":
            found = gain(results, [name], ["base", *scenario.adapters], form, margin=self.margin)
        return Cell(
            size=size,
            group=group,
            template=str(scenario.axes["template"]),
            library=int(scenario.axes["library"]),
            system=system,
            role=role,
            form=form,
            score=score,
            score_ci95=interval,
            n=n,
            worlds=len(self.of_size(size)),
            gain=found.difference if found else None,
            gain_ci95=found.ci95 if found else None,
            against=found.against if found else "",
        )


def share(
    results: Sequence[ItemResult], system: str | Sequence[str], form: str
) -> tuple[float, Interval, int]:
    """Share of right answers of a system, or the mean of it over several, with Wilson's interval.

    Items of one person in one world are one cluster; several systems' answers to one item are
    averaged first, so that they do not count as independent. Raises ValueError without results.
    """
    names = {system} if isinstance(system, str) else set(system)
    values: dict[tuple[str, str], list[float]] = {}
    groups: dict[tuple[str, str], tuple[str, str]] = {}
    for row in results:
        if row.system in names and row.part == form:
            values.setdefault((row.task, row.item), []).append(row.value)
            groups[row.task, row.item] = (row.task, row.group)
    if not values:
        raise ValueError(f"{', '.join(sorted(names))} gave no answers in the form {form}")
    means = np.array([np.mean(found) for found in values.values()])
    seen: dict[tuple[str, str], int] = {}
    clusters = np.array([seen.setdefault(groups[key], len(seen)) for key in values], dtype=np.int64)
    return float(means.mean()), wilson(means, clusters), len(means)
