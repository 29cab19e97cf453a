"""The table: what each entrant gains at two hops, keeps of two skills, and gains step by step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from loraprobe.evaluation import statistics
from loraprobe.evaluation.statistics import Array
from loraprobe.evaluation.table import tabulate
from loraprobe_lab.methods.asking import Answers
from loraprobe_lab.methods.cases import FORM, Question
from loraprobe_lab.methods.entrants import Entrant
from loraprobe_lab.methods.pooling import Pooled, over_worlds, pooled

MARGIN = 0.05
LEVEL, SEED = 0.95, 0
NORMAL95 = 2 * 1.959963984540054  # width of a 95 % interval in standard errors
ROLES: Mapping[Question, tuple[str, str]] = {
    "two-hop": ("hop 1", "hop 2"),
    "keep-both": ("skill 1", "skill 2"),
    "step-by-step": ("facts", "steps"),
}
Standing = Literal["gains", "does not gain", "undecided"]


@dataclass(frozen=True)
class Gain:
    """Score minus that of the best of base and single adapters, each a mean over worlds.

    `against` is that baseline; `score` and `each` are the entrant's own mean and its gains by
    world. The adjusted interval holds for all entrants of the question, whichever baseline is best.
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
class Kept:
    """Retention, (score - base) / (specialist - base), of two skills in one model.

    `worse` is the mean over worlds of the worse of the two, `both` that of their mean, `skills`
    those of each. `behind` is the best entrant's `worse` minus this one's, paired by world.
    """

    worse: Pooled
    both: Pooled
    skills: tuple[float, float]
    behind: Pooled | None = None

    @property
    def beaten(self) -> bool:
        """Whether the best one is better beyond doubt."""
        return self.behind is not None and self.behind.adjusted_ci95[0] > 0


@dataclass(frozen=True)
class Row:
    """One entrant and its three results, None where it took no part.

    `lost`: of a merge's delta at the default rank, on average over the cases.
    """

    entrant: Entrant
    two_hop: Gain | None = None
    keep_both: Kept | None = None
    step_by_step: Gain | None = None
    lost: float | None = None


@dataclass(frozen=True)
class Count:
    """What stands behind a column."""

    worlds: int
    cases: int
    items: int
    baselines: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """All rows, in the order of the entrants; what stands behind each question; who was refused."""

    rows: tuple[Row, ...]
    counts: Mapping[Question, Count]
    refused: Mapping[str, str]


def tabulated(answered: Sequence[Answers], everyone: Sequence[Entrant]) -> Table:
    """The table of these cases. A case is averaged with the others of its world and question."""
    refused = {label: why for a in answered for label, why in a.refused.items()}
    lost = {
        e.label: float(np.mean(found))
        for e in everyone
        if (found := [a.lost[e.label] for a in answered if e.label in a.lost])
    }
    by: dict[Question, list[Answers]] = {}
    for one in answered:
        by.setdefault(one.case.question, []).append(one)
    gains = {
        question: _gains(by[question], everyone)
        for question in ("two-hop", "step-by-step")
        if question in by
    }
    kept = _kept(by["keep-both"], everyone) if "keep-both" in by else {}
    rows = tuple(
        Row(
            e,
            gains.get("two-hop", {}).get(e.label),
            kept.get(e.label),
            gains.get("step-by-step", {}).get(e.label),
            lost.get(e.label),
        )
        for e in everyone
    )
    return Table(rows, {question: _count(cases) for question, cases in by.items()}, refused)


def _count(cases: Sequence[Answers]) -> Count:
    question = cases[0].case.question
    form = FORM[question]
    rows = [row for case in cases for row in case.results if row.part == form]
    items = sum(row.system == "base" for row in rows)
    scores = {
        name: float(np.mean([row.value for row in rows if row.system == name]))
        for name in ("base", *ROLES[question])
    }
    worlds = len({case.case.world.path for case in cases})
    return Count(worlds, len(cases), items, scores)


def _worlds(cases: Sequence[Answers]) -> list[list[Answers]]:
    """The cases by the world that they lie in."""
    found: dict[object, list[Answers]] = {}
    for case in cases:
        found.setdefault(case.case.world.path, []).append(case)
    return list(found.values())


def _everywhere(cases: Sequence[Answers], everyone: Iterable[Entrant]) -> list[str]:
    """Labels of those who answered in every case."""
    present = [{row.system for row in case.results} for case in cases]
    return [e.label for e in everyone if all(e.label in names for names in present)]


def _gains(cases: Sequence[Answers], everyone: Sequence[Entrant]) -> dict[str, Gain]:
    """Entrants against base and singles, in either form where the question is in worked steps."""
    question = cases[0].case.question
    form, names = FORM[question], _everywhere(cases, everyone)
    forms = dict.fromkeys((form, "target"))
    second = [(b, f) for b in ("base", *ROLES[question]) for f in forms]
    first = [(name, form) for name in names]
    if not first:
        return {}
    worlds = [_differences(world, first, second) for world in _worlds(cases)]
    found, shape = over_worlds(worlds), (len(first), len(second))
    lower, upper, _ = statistics.largest(found, shape, LEVEL, SEED)
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
        gains[name] = Gain(_score(cases, name, form), second[k % shape[1]][0], one)
    return gains


def _differences(
    cases: Sequence[Answers], first: list[tuple[str, str]], second: list[tuple[str, str]]
) -> statistics.Estimates:
    """Paired differences of all pairs in one world; each of its cases is a stratum."""
    rows = [
        replace(row, task=f"{case.case.name}:{row.task}") for case in cases for row in case.results
    ]
    return tabulate(rows, [*first, *second]).differences(first, second)


def _score(cases: Sequence[Answers], name: str, form: str) -> float:
    worlds = [
        np.mean([r.value for c in world for r in c.results if (r.system, r.part) == (name, form)])
        for world in _worlds(cases)
    ]
    return float(np.mean(worlds))


def _kept(cases: Sequence[Answers], everyone: Sequence[Entrant]) -> dict[str, Kept]:
    """Retentions. Cases in which a specialist does not stand out from the base are left out."""
    names = _everywhere(cases, everyone)
    told = [case for case in cases if names and _specialists(case)]
    if not told:
        return {}
    worlds = _worlds(told)
    found = [[_mean_keep([_keep(case, name) for case in world]) for name in names]
             for world in worlds]  # fmt: skip
    best = int(np.argmax([np.mean([row[s].worse for row in found]) for s in range(len(names))]))
    return {
        name: _over_worlds([row[s] for row in found], [row[best] for row in found], len(names))
        for s, name in enumerate(names)
    }


@dataclass(frozen=True)
class _Keep:
    """What is kept of two skills in one case or world, with standard errors."""

    skills: Array  # [2]
    worse: float
    worse_error: float
    both: float
    both_error: float


def _keep(case: Answers, name: str) -> _Keep:
    found = [_ratio(case, name, k) for k in range(2)]
    kept = np.array([f for f in found if f is not None])  # [skills, value | standard error]
    assert len(kept) == 2, "where specialists stand out, every system has a retention"
    lower = int(kept[:, 0].argmin())
    both_error = float(np.hypot(*kept[:, 1])) / 2
    worse, worse_error = kept[lower].tolist()
    return _Keep(kept[:, 0], worse, worse_error, float(kept[:, 0].mean()), both_error)


def _mean_keep(cases: Sequence[_Keep]) -> _Keep:
    n = len(cases)
    return _Keep(
        np.mean([c.skills for c in cases], axis=0),
        float(np.mean([c.worse for c in cases])),
        float(np.sqrt(sum(c.worse_error**2 for c in cases))) / n,
        float(np.mean([c.both for c in cases])),
        float(np.sqrt(sum(c.both_error**2 for c in cases))) / n,
    )


def _over_worlds(own: Sequence[_Keep], best: Sequence[_Keep], entrants: int) -> Kept:
    """One entrant's figures over worlds. The gap to the best one is paired by world, whose spread
    holds the items' noise too; in a single world it is that of two separate samples."""
    worse, both = np.array([k.worse for k in own]), np.array([k.both for k in own])
    behind = None
    if any(a is not b for a, b in zip(own, best, strict=True)):
        gap = np.array([b.worse - a.worse for a, b in zip(own, best, strict=True)])
        noise = np.hypot([a.worse_error for a in own], [b.worse_error for b in best])
        behind = pooled(gap, noise if len(own) == 1 else np.zeros(len(own)), entrants - 1)
    skills = np.mean([k.skills for k in own], axis=0)
    return Kept(
        pooled(worse, np.array([k.worse_error for k in own]), entrants),
        pooled(both, np.array([k.both_error for k in own]), entrants),
        (float(skills[0]), float(skills[1])),
        behind,
    )


def _specialists(case: Answers) -> bool:
    """Whether each skill's own adapter stands out from the base: else there is nothing to keep."""
    return all(_ratio(case, role, k) is not None for k, role in enumerate(ROLES["keep-both"]))


def _ratio(case: Answers, name: str, skill: int) -> tuple[float, float] | None:
    """Retention of one skill against its own specialist, with half the width of Fieller's interval
    in standard errors."""
    role, task = ROLES["keep-both"][skill], case.case.scenario.tasks[skill].stem
    columns = [(s, "target") for s in dict.fromkeys(("base", role, name))]
    table = tabulate(case.results, columns, task)
    of = {system: table.column(system, part) for system, part in columns}
    found = statistics.ratio(of[name] - of["base"], of[role] - of["base"], table.clusters)
    if found is None:
        return None
    return found[0], (found[1][1] - found[1][0]) / NORMAL95
