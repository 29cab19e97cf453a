"""The table: what each system gains at two hops, keeps of two skills, and gains step by step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from loraprobe.evaluation import statistics
from loraprobe.evaluation.selection import largest
from loraprobe.evaluation.statistics import Array, ratio
from loraprobe.evaluation.table import tabulate
from loraprobe_lab.experiments.methods.evaluating import FORM, ROLES, CaseResults, Kind
from loraprobe_lab.experiments.methods.pooling import Pooled, over_worlds, pooled
from loraprobe_lab.experiments.methods.systems import ComparedSystem

MARGIN = 0.05
LEVEL, SEED = 0.95, 0
NORMAL95 = 2 * 1.959963984540054  # width of a 95 % interval in standard errors
Standing = Literal["gains", "does not gain", "undecided"]


@dataclass(frozen=True)
class MethodGain:
    """Score minus that of the best of base and single adapters, each a mean over worlds.

    `against` is that baseline; `score` is the system's own mean. The adjusted interval holds for
    all systems of the question, whichever baseline is best.
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
    """One system and its three results, None where it took no part.

    `lost`: of a merge's delta at the default rank, on average over the cases.
    """

    system: ComparedSystem
    two_hop: MethodGain | None = None
    keep_both: KeptSkills | None = None
    step_by_step: MethodGain | None = None
    lost: float | None = None

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
    rows = []
    for system in systems:
        label = system.label
        lost = [a.lost[label] for a in answered if label in a.lost]
        mean = float(np.mean(lost)) if lost else None
        found = (two_hop.get(label), kept.get(label), step_by_step.get(label))
        rows.append(MethodsRow(system, *found, mean))
    refused = {label: why for a in answered for label, why in a.refused.items()}
    return MethodsTable(tuple(rows), {kind: _count(cases) for kind, cases in by.items()}, refused)


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


def _gains(
    cases: Sequence[CaseResults], systems: Sequence[ComparedSystem]
) -> dict[str, MethodGain]:
    """Systems against base and singles, in either form where the question is in worked steps."""
    kind = cases[0].case.kind
    form, names = FORM[kind], _everywhere(cases, systems)
    forms = dict.fromkeys((form, "question"))
    second = [(b, f) for b in ("base", *ROLES[kind]) for f in forms]
    first = [(name, form) for name in names]
    if not first:
        return {}
    worlds = [_differences(world, first, second) for world in _worlds(cases)]
    found, shape = over_worlds(worlds), (len(first), len(second))
    lower, upper, _ = largest(found, shape, LEVEL, SEED)
    own = found.interval(found.critical(LEVEL))
    low = found.interval(lower)[0].reshape(shape).min(1)
    high = found.interval(upper)[1].reshape(shape).min(1)
    gains = {}
    for s, name in enumerate(names):
        k = s * shape[1] + int(found.difference.reshape(shape)[s].argmin())
        one = Pooled(
            float(found.difference[k]),
            (float(own[0][k]), float(own[1][k])),
            (float(low[s]), float(high[s])),
            len(worlds),
            tuple(float(world.difference[k]) for world in worlds),
        )
        gains[name] = MethodGain(_score(cases, name, form), second[k % shape[1]][0], one)
    return gains


def _differences(
    cases: Sequence[CaseResults], first: list[tuple[str, str]], second: list[tuple[str, str]]
) -> statistics.Estimates:
    """Paired differences of all pairs in one world; each of its cases is a stratum."""
    rows = [
        replace(row, task=f"{case.case.name}:{row.task}") for case in cases for row in case.results
    ]
    return tabulate(rows, [*first, *second]).differences(first, second)


def _score(cases: Sequence[CaseResults], name: str, form: str) -> float:
    worlds = [
        np.mean([r.value for c in world for r in c.results if (r.system, r.part) == (name, form)])
        for world in _worlds(cases)
    ]
    return float(np.mean(worlds))


def _kept(cases: Sequence[CaseResults], systems: Sequence[ComparedSystem]) -> dict[str, KeptSkills]:
    """Retentions, without cases in which a specialist is not better than the base."""
    names, roles = _everywhere(cases, systems), ROLES["keep-both"]
    told = [
        case
        for case in cases
        if all(_ratio(case, role, k) is not None for k, role in enumerate(roles))
    ]
    if not told or not names:
        return {}
    found = np.stack([_retentions(world, names) for world in _worlds(told)])
    best = int(found[:, :, 2, 0].mean(0).argmax())  # by the worse skill
    return {
        name: _over_worlds(found[:, s], None if s == best else found[:, best], len(names))
        for s, name in enumerate(names)
    }


def _retentions(cases: Sequence[CaseResults], names: Sequence[str]) -> Array:
    """What every system keeps in one world: [systems, (skill 1, skill 2, worse, both), (value,
    standard error)], the mean over the world's cases."""
    rows = np.array([[[_ratio(c, name, k) for k in range(2)] for name in names] for c in cases])
    rows = rows.astype(float)
    worse = np.take_along_axis(rows, rows[..., :1].argmin(2, keepdims=True), axis=2)
    both = np.stack([rows[..., 0].mean(2), np.hypot(*rows[..., 1].transpose(2, 0, 1)) / 2], -1)
    every = np.concatenate([rows, worse, both[:, :, None]], axis=2)
    error = np.sqrt((every[..., 1] ** 2).sum(0)) / len(cases)
    return np.stack([every[..., 0].mean(0), error], -1)


def _over_worlds(own: Array, best: Array | None, systems: int) -> KeptSkills:
    """One system's figures over worlds, from [worlds, 4, 2] of `_retentions`; best: the best one's.

    The gap to the best one is paired by world, whose spread holds the items' noise too; in a
    single world it is that of two separate samples.
    """
    (first, second), (worse, both) = own[:, :2, 0].mean(0).tolist(), own[:, 2:].transpose(1, 2, 0)
    behind = None
    if best is not None:
        rival, rival_error = best[:, 2].T
        noise = np.hypot(worse[1], rival_error) if len(own) == 1 else np.zeros(len(own))
        behind = pooled(rival - worse[0], noise, systems - 1)
    worst, mean = (pooled(row[0], row[1], systems) for row in (worse, both))
    return KeptSkills(worst, mean, (first, second), behind)


def _ratio(case: CaseResults, name: str, skill: int) -> tuple[float, float] | None:
    """Retention of one skill against its own specialist, with half the width of Fieller's interval
    in standard errors; None where the specialist does not stand out."""
    role, task = ROLES["keep-both"][skill], case.case.scenario.tasks[skill].stem
    columns = [(s, "question") for s in dict.fromkeys(("base", role, name))]
    table = tabulate(case.results, columns, task)
    of = {system: table.column(system, part) for system, part in columns}
    found = ratio(of[name] - of["base"], of[role] - of["base"], table.clusters)
    return None if found is None else (found[0], (found[1][1] - found[1][0]) / NORMAL95)
