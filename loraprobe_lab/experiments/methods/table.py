"""The table: what each system gains at two hops, keeps of two skills, and gains step by step.

Every world gives one figure of a system, the mean over its cases; figures are plain means over
worlds with Student's interval, so they speak of worlds of this kind. The standard error is never
below that of two items more in every world, one gained and one lost. That of a single world is the
largest that its items allow. The adjusted intervals hold for all figures of a column (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from loraprobe.evaluation.statistics import Array, quantile, ratio
from loraprobe.evaluation.table import tabulate
from loraprobe.records import Interval
from loraprobe_lab.experiments.methods.evaluating import FORM, ROLES, CaseResults, Kind
from loraprobe_lab.experiments.methods.systems import ComparedSystem

MARGIN = 0.05
ALPHA = 0.05
Standing = Literal["gains", "does not gain", "undecided"]
Scores = Mapping[tuple[str, str], Mapping[str, float]]  # (system, part) -> task -> exact match


@dataclass(frozen=True)
class Pooled:
    """A mean over worlds. `ci95` is for this figure, `adjusted_ci95` for all of its column at once.

    `each` holds the worlds' own figures, in their order.
    """

    value: float
    ci95: Interval
    adjusted_ci95: Interval
    worlds: int
    each: tuple[float, ...] = ()


def pooled(values: Array, items: int, figures: int) -> Pooled:
    """One figure over worlds: `values` [k], of `items` items each; `figures` are in the column."""
    k, mean = len(values), float(values.mean())
    spread = values.std(ddof=1) / math.sqrt(k) if k > 1 else 1 / math.sqrt(items + 2)
    error = max(float(spread), math.sqrt(2 / k) / (items + 2))

    def interval(alpha: float) -> Interval:
        reach = quantile(1 - alpha / 2, k - 1 if k > 1 else math.inf) * error
        return mean - reach, mean + reach

    return Pooled(mean, interval(ALPHA), interval(ALPHA / figures), k, tuple(values.tolist()))


@dataclass(frozen=True)
class MethodGain:
    """Score minus that of the best of base and single adapters, each a mean over worlds.

    `against` is that baseline; `score` is the system's own mean.
    """

    score: float
    against: str
    gain: Pooled

    @property
    def standing(self) -> Standing:
        low, high = self.gain.adjusted_ci95
        if low > MARGIN:
            return "gains"
        return "does not gain" if high < MARGIN else "undecided"


@dataclass(frozen=True)
class KeptSkills:
    """Retention, (score - base) / (specialist - base), of two skills in one model.

    `worse` is the mean over worlds of the worse of the two, `both` that of their mean, `skills`
    those of each. `behind` is the best system's `worse` minus this one's, paired by world.
    """

    worse: Pooled
    both: Pooled
    skills: tuple[float, float]
    behind: Pooled | None = None

    @property
    def beaten(self) -> bool:
        """Whether the best system is significantly better."""
        return self.behind is not None and self.behind.adjusted_ci95[0] > 0


@dataclass(frozen=True)
class MethodsRow:
    """One system and its three results, None where it took no part."""

    system: ComparedSystem
    two_hop: MethodGain | None = None
    keep_both: KeptSkills | None = None
    step_by_step: MethodGain | None = None

    @property
    def figures(self) -> tuple[Pooled | None, Pooled | None, Pooled | None]:
        """The gain at two hops, the retention of the worse skill, the gain step by step."""
        return (
            self.two_hop.gain if self.two_hop else None,
            self.keep_both.worse if self.keep_both else None,
            self.step_by_step.gain if self.step_by_step else None,
        )


@dataclass(frozen=True)
class Count:
    """The data of a column."""

    worlds: int
    cases: int
    items: int
    baselines: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodsTable:
    """All rows, in the order of the systems; the data of each question; systems not built."""

    rows: tuple[MethodsRow, ...]
    counts: Mapping[Kind, Count]
    refused: Mapping[str, str]


def tabulated(answered: Sequence[CaseResults], systems: Sequence[ComparedSystem]) -> MethodsTable:
    """The table of these cases. A case is averaged with the others of its world and question."""
    by: dict[Kind, list[CaseResults]] = {}
    for one in answered:
        by.setdefault(one.case.kind, []).append(one)
    two_hop, step_by_step = (
        _gains(by[kind], systems) if kind in by else {} for kind in ("two-hop", "step-by-step")
    )
    kept = _kept(by["keep-both"], systems) if "keep-both" in by else {}
    rows = tuple(
        MethodsRow(one, two_hop.get(one.label), kept.get(one.label), step_by_step.get(one.label))
        for one in systems
    )
    refused = {label: why for a in answered for label, why in a.refused.items()}
    return MethodsTable(rows, {kind: _count(cases) for kind, cases in by.items()}, refused)


def _count(cases: Sequence[CaseResults]) -> Count:
    kind = cases[0].case.kind
    rows = [row for case in cases for row in case.results if row.part == FORM[kind]]
    items = sum(row.system == "base" for row in rows)
    scores = {
        name: float(np.mean([row.value for row in rows if row.system == name]))
        for name in ("base", *ROLES[kind])
    }
    return Count(len(_worlds(cases)), len(cases), items, scores)


def _worlds(cases: Sequence[CaseResults]) -> list[list[CaseResults]]:
    """The cases by the world that they lie in."""
    found: dict[object, list[CaseResults]] = {}
    for case in cases:
        found.setdefault(case.case.world.path, []).append(case)
    return list(found.values())


def _everywhere(cases: Sequence[CaseResults], systems: Iterable[ComparedSystem]) -> list[str]:
    """Labels of the systems with results in every case."""
    present = [{row.system for row in case.results} for case in cases]
    return [one.label for one in systems if all(one.label in names for names in present)]


def _scores(case: CaseResults) -> Scores:
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in case.results:
        tasks = values.setdefault((row.system, row.part), {})
        tasks.setdefault(row.task, []).append(row.value)
    return {
        key: {task: float(np.mean(own)) for task, own in tasks.items()}
        for key, tasks in values.items()
    }


def _items(cases: Sequence[CaseResults]) -> int:
    """The fewest items of a case."""
    return min(len({(row.task, row.item) for row in case.results}) for case in cases)


def _gains(
    cases: Sequence[CaseResults], systems: Sequence[ComparedSystem]
) -> dict[str, MethodGain]:
    """Systems against base and singles, in either form where the question is in worked steps."""
    kind = cases[0].case.kind
    form, names = FORM[kind], _everywhere(cases, systems)
    worlds = [[_scores(case) for case in world] for world in _worlds(cases)]

    def each(system: str, part: str) -> Array:
        own = [[np.mean(list(s[system, part].values())) for s in world] for world in worlds]
        return np.array([np.mean(found) for found in own])

    forms = dict.fromkeys((form, "question"))
    second = {(b, f): each(b, f) for b in ("base", *ROLES[kind]) for f in forms}
    against, best = max(second.items(), key=lambda row: float(row[1].mean()))
    found = {name: each(name, form) for name in names}
    items = _items(cases)
    return {
        name: MethodGain(float(own.mean()), against[0], pooled(own - best, items, len(names)))
        for name, own in found.items()
    }


def _kept(cases: Sequence[CaseResults], systems: Sequence[ComparedSystem]) -> dict[str, KeptSkills]:
    """Retentions, without cases in which a specialist is not better than the base."""
    told = [case for case in cases if all(_stands_out(case, skill) for skill in (0, 1))]
    names = _everywhere(cases, systems)
    if not told or not names:
        return {}
    worlds = [[(case, _scores(case)) for case in world] for world in _worlds(told)]
    # [worlds, systems, (skill 1, skill 2, worse, both)]
    shares = np.array(
        [
            np.mean([[_retained(*case, name) for name in names] for case in world], axis=0)
            for world in worlds
        ]
    )
    best, items = int(shares[:, :, 2].mean(0).argmax()), _items(told)
    found = {}
    for s, name in enumerate(names):
        worse, both = (pooled(shares[:, s, k], items, len(names)) for k in (2, 3))
        gap = shares[:, best, 2] - shares[:, s, 2]
        behind = None if s == best else pooled(gap, items, len(names) - 1)
        first, second = shares[:, s, :2].mean(0).tolist()
        found[name] = KeptSkills(worse, both, (first, second), behind)
    return found


def _retained(case: CaseResults, scores: Scores, name: str) -> tuple[float, float, float, float]:
    """What a system keeps of both skills in one case, of the worse one, and of both on average."""
    kept = []
    for role, task in zip(ROLES["keep-both"], case.case.scenario.tasks, strict=True):
        own, base, expert = (scores[s, "question"][task.stem] for s in (name, "base", role))
        kept.append((own - base) / (expert - base))
    return kept[0], kept[1], min(kept), sum(kept) / 2


def _stands_out(case: CaseResults, skill: int) -> bool:
    """Whether the specialist of a skill is shown to be better than the base."""
    role, task = ROLES["keep-both"][skill], case.case.scenario.tasks[skill].stem
    table = tabulate(case.results, [("base", "question"), (role, "question")], task)
    gained = table.column(role, "question") - table.column("base", "question")
    return ratio(gained, gained, table.clusters) is not None
