"""Scores, paired comparisons, retention and gains, computed from per-item results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
from scipy import special

from loraprobe.defaults import MARGIN
from loraprobe.evaluation import statistics
from loraprobe.evaluation.systems import BASELINES, COMPOSITIONS, System
from loraprobe.evaluation.table import Column, Table, tabulate
from loraprobe.records import Comparison, Gain, Interval, ItemResult, Score

POWER = 0.8
MOST_ITEMS = 1_000_000


def score(
    results: Sequence[ItemResult], systems: Sequence[System], *, level: float = 0.95
) -> tuple[Score, ...]:
    """One row for every system, task and part that has results, in the order of `systems`.

    Right-or-wrong metrics have Wilson's interval, losses a t interval; both account for clusters.
    With several tasks, the rows of all systems except the base have `retention`.
    """
    cells: dict[tuple[str, str], dict[str, list[ItemResult]]] = {}
    for result in results:
        cell = cells.setdefault((result.task, result.part), {})
        cell.setdefault(result.system, []).append(result)
    several = len({task for task, _ in cells}) > 1
    return tuple(
        _score(cell, systems, system, several, level)
        for system in systems
        for cell in cells.values()
        if system.name in cell
    )


def _score(
    cell: Mapping[str, list[ItemResult]],
    systems: Sequence[System],
    system: System,
    several: bool,
    level: float,
) -> Score:
    """One row. cell: the results of all systems on its task and part."""
    mine = cell[system.name]
    task, part = mine[0].task, mine[0].part
    values = np.array([r.value for r in mine])
    table = tabulate(mine, [(system.name, part)])
    interval = statistics.wilson if table.bounded else statistics.mean_interval
    kept = None
    if several and system.kind != "base":
        kept = retention(list(chain(*cell.values())), systems, system.name, task, part, level=level)
    return Score(
        system=system.name,
        kind=system.kind,
        task=task,
        part=part,
        metric="+".join(sorted({r.metric for r in mine})),
        value=float(values.mean()),
        ci95=interval(values, table.clusters, level),
        n=len(mine),
        retention=kept[0] if kept else None,
        retention_ci95=kept[1] if kept else None,
        compression_error=system.compression_error,
    )


def retention(
    results: Sequence[ItemResult],
    systems: Sequence[System],
    name: str,
    task: str,
    part: str = "question",
    *,
    level: float = 0.95,
) -> tuple[float, Interval] | None:
    """(system - base) / (specialist - base) on one task, with its interval.

    The specialist is the single adapter with the best score on the task. None if the base or the
    single adapters were not measured, for losses, for the specialist itself, and if the specialist
    is not significantly better than the base.
    """
    singles = [s.name for s in systems if s.kind == "adapter"]
    base = [s.name for s in systems if s.kind == "base"]
    columns = [(s, part) for s in dict.fromkeys([*base, *singles, name])]
    table = tabulate(results, columns, task)
    complete = np.isfinite(table.values).all(axis=1)
    if not (base and singles and table.bounded and complete.any()):
        return None
    values = table.values[complete]
    means = dict(zip((column[0] for column in columns), values.mean(0), strict=True))
    specialist = max(singles, key=lambda single: means[single])
    if specialist == name:
        return None
    of = {column[0]: values[:, k] for k, column in enumerate(columns)}
    start = of[base[0]]
    return statistics.ratio(
        of[name] - start, of[specialist] - start, table.clusters[complete], level
    )


def compare(
    results: Sequence[ItemResult],
    systems: Sequence[System],
    *,
    seed: int = 0,
    level: float = 0.95,
    parts: Sequence[str] = ("question", "steps"),
) -> tuple[Comparison, ...]:
    """Every composition against the base, every single adapter and every control.

    Both are compared on the same items. A positive difference means that the system is better (for
    losses: that its loss is lower). `adjusted_ci95` covers all rows of one task and part together.
    """
    others = [s.name for s in systems if s.kind in (*BASELINES, "control")]
    rows: list[Comparison] = []
    for task in _tasks(results):
        for part in parts:
            second = _measured(results, others, task, part)
            first = _measured(results, _compositions(systems), task, part)
            table = tabulate(results, [*first, *second], task)
            first = table.comparable(first, second)
            if first and second:
                rows += _comparisons(table, first, second, task, seed, level)
    return tuple(rows)


def _comparisons(
    table: Table, first: list[Column], others: list[Column], task: str, seed: int, level: float
) -> list[Comparison]:
    second = sorted(others, key=_by_name)
    found = table.differences(first, second)
    shape = (len(first), len(second))
    plain = np.stack(found.interval(found.critical(level)), axis=1)
    both = statistics.largest(found, shape, level, seed)[2]
    adjusted = np.stack(found.interval(both), axis=1)
    pairs = [(one, other) for one in first for other in second]
    rows = [
        Comparison(
            system=one[0],
            against=other[0],
            task=task,
            part=one[1],
            difference=float(found.difference[k]),
            ci95=_interval(plain[k]),
            n=int(found.n[k]),
            adjusted_ci95=_interval(adjusted[k]),
        )
        for k, (one, other) in enumerate(pairs)
    ]
    order = {name: k for k, (name, _) in enumerate(others)}
    return [
        row
        for k in range(0, len(rows), len(second))
        for row in sorted(rows[k : k + len(second)], key=lambda row: order[row.against])
    ]


def gains(
    results: Sequence[ItemResult],
    systems: Sequence[System],
    *,
    margin: float = MARGIN,
    alpha: float = 0.05,
    seed: int = 0,
) -> tuple[Gain, ...]:
    """The gains of all merges and routers, then of all chains, the best first; plain form first.

    Merges with routers and chains are separate families, because a chain is the alternative to
    composing weights. If a question is asked in both forms, a gain in one of them is a success.
    The lower ends of each form therefore use half of alpha. The upper ends use all of alpha, since
    a failure needs both forms.
    """
    baselines = [s.name for s in systems if s.kind in BASELINES]
    families = [("merge", "router"), ("chain",)]
    rows: list[Gain] = []
    for family in families:
        names = [s.name for s in systems if s.kind in family]
        asked = {r.part for r in results if r.system in names} & {"question", "steps"}
        for part in sorted(asked, reverse=True):
            rows += _family(results, names, baselines, part, alpha, margin, seed, forms=len(asked))
    return tuple(sorted(rows, key=lambda row: row.part != "question"))


def gain(
    results: Sequence[ItemResult],
    compositions: Sequence[str],
    baselines: Sequence[str],
    part: str = "question",
    *,
    alpha: float = 0.05,
    margin: float = MARGIN,
    seed: int = 0,
) -> Gain | None:
    """The gain of the best composition over the best baseline: max_s min_b (s - b).

    The lower end of `adjusted_ci95` is that of the named system, the upper end covers all
    compositions. None if nothing comparable was measured. An audit has the rows of `gains`; this
    single number is for tables with one figure per cell.
    """
    rows = _family(results, compositions, baselines, part, alpha, margin, seed)
    if not rows:
        return None
    top = max(row.adjusted_ci95[1] for row in rows)
    return replace(rows[0], adjusted_ci95=(rows[0].adjusted_ci95[0], top))


def _family(
    results: Sequence[ItemResult],
    compositions: Sequence[str],
    baselines: Sequence[str],
    part: str,
    alpha: float,
    margin: float,
    seed: int,
    forms: int = 1,
) -> list[Gain]:
    """One row for each composition, the best first: its smallest difference to a baseline.

    If no composition reaches the margin, some lower end lies above it in at most alpha / 2 of all
    runs, over all `forms` of the question together. If one reaches it, all upper ends lie below it
    in at most alpha / 2. With several tasks the difference is the plain mean over tasks, and a
    composition that lacks a task has no row. For part "steps" the baselines' plain answers count
    too, because a baseline may not need worked steps.
    """
    parts = ("question", "steps") if part == "steps" else (part,)
    present = {(r.system, r.part) for r in results}
    second = sorted(((b, p) for b in baselines for p in parts if (b, p) in present), key=_by_name)
    first = [(s, part) for s in compositions if (s, part) in present]
    if not first or not second:
        return []
    table = tabulate(results, [*first, *second])
    first = table.comparable(first, second)
    if not first:
        return []
    shape = (len(first), len(second))
    found = table.differences(first, second)
    lower, upper, _ = statistics.largest(found, shape, 1 - alpha, seed)
    if forms > 1:
        lower = statistics.largest(found, shape, 1 - alpha / forms, seed)[0]
    tasks = _tasks(results)
    rows = _least(found, first, second, (1 - alpha, lower, upper), margin)
    task = tasks[0] if len(tasks) == 1 else None
    return sorted(
        (replace(row, task=task) for row in rows),
        key=lambda row: (-round(row.difference, 9), -round(row.adjusted_ci95[0], 9)),
    )


def _least(
    found: statistics.Estimates,
    first: Sequence[Column],
    second: Sequence[Column],
    ends: tuple[float, float, float],
    margin: float,
) -> list[Gain]:
    """For each column of `first` its smallest difference to a column of `second`.

    ends: the level of the plain interval, and the critical values of the adjusted interval.
    """
    level, lower, upper = ends
    shape = (len(first), len(second))
    plain = found.interval(found.critical(level))
    lows = found.interval(lower)[0].reshape(shape).min(1)
    highs = found.interval(upper)[1].reshape(shape).min(1)
    rows = []
    for s, (system, part) in enumerate(first):
        k = s * shape[1] + int(found.difference.reshape(shape)[s].argmin())
        adjusted = (float(lows[s]), float(highs[s]))
        against, against_part = second[k % shape[1]]
        rows.append(
            Gain(
                task=None,
                part=part,
                system=system,
                against=against,
                against_part=against_part,
                difference=float(found.difference[k]),
                ci95=(float(plain[0][k]), float(plain[1][k])),
                adjusted_ci95=adjusted,
                n=int(found.n[k]),
                n_needed=_needed(found, k, lower, upper, margin, adjusted),
            )
        )
    return rows


def _needed(
    found: statistics.Estimates,
    k: int,
    lower: float,
    upper: float,
    margin: float,
    adjusted: Interval,
) -> int | None:
    """The number of items that decides with a power of 0.8 if the difference does not change.

    The standard error is proportional to 1 / sqrt(number of items).
    """
    n = int(found.n[k])
    if adjusted[0] > margin or adjusted[1] < margin:
        return n
    distance = float(found.difference[k]) - margin
    critical = (lower if distance > 0 else upper) + float(special.ndtri(POWER))
    if distance == 0 or not math.isfinite(critical):
        return None
    needed = n * (critical * float(found.se[k]) / distance) ** 2
    return max(n + 1, math.ceil(needed)) if needed <= MOST_ITEMS else None


def _by_name(column: Column) -> tuple[bool, Column]:
    """A key that puts the base first, then names; figures do not depend on the input's order."""
    return column[0] != "base", column


def _interval(row: np.ndarray) -> Interval:
    return float(row[0]), float(row[1])


def _compositions(systems: Iterable[System]) -> list[str]:
    return [system.name for system in systems if system.kind in COMPOSITIONS]


def _measured(
    results: Sequence[ItemResult], names: Sequence[str], task: str, part: str
) -> list[Column]:
    present = {r.system for r in results if r.task == task and r.part == part}
    return [(name, part) for name in names if name in present]


def _tasks(results: Iterable[ItemResult]) -> list[str]:
    return list(dict.fromkeys(result.task for result in results))
