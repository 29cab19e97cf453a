"""Scores, paired comparisons, retention and oracles, computed from per-item results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain, product

import numpy as np

from loraprobe.evaluation import statistics
from loraprobe.evaluation.selection import largest
from loraprobe.evaluation.statistics import LEVEL
from loraprobe.evaluation.systems import COMPOSITIONS, System
from loraprobe.evaluation.table import (
    Column,
    ItemTable,
    by_name,
    clusters_of,
    tabulate,
    task_names,
)
from loraprobe.records import BASELINES, FORMS, Comparison, Interval, ItemResult, Oracle, Score
from loraprobe.tasks import GENERATED


def score(
    results: Sequence[ItemResult], systems: Sequence[System], *, level: float = LEVEL
) -> tuple[Score, ...]:
    """One row for every system, task and part that has results, in the order of `systems`.

    Right-or-wrong metrics have Wilson's interval, losses a t interval; both account for clusters.
    With several tasks, the rows of all systems except the base have `retention`, whose interval has
    the level of the look.
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
    replies = [k for k, r in enumerate(mine) if r.metric in GENERATED]
    stands = np.array([float(mine[k].stands) for k in replies])
    kept = None
    if several and system.kind != "base":
        kept = retention(list(chain(*cell.values())), systems, system.name, task, part, level)
    return Score(
        system=system.name,
        kind=system.kind,
        task=task,
        part=part,
        metric="+".join(sorted({r.metric for r in mine})),
        value=float(values.mean()),
        ci95=interval(values, table.clusters),
        n=len(mine),
        retention=kept[0] if kept else None,
        retention_ci95=kept[1] if kept else None,
        compression_error=system.compression_error,
        contains=float(stands.mean()) if replies else None,
        contains_ci95=statistics.wilson(stands, table.clusters[replies]) if replies else None,
        cut=float(np.mean([mine[k].cut for k in replies])) if replies else None,
        clusters=clusters_of(table.clusters),
    )


def retention(
    results: Sequence[ItemResult],
    systems: Sequence[System],
    name: str,
    task: str,
    part: str = "question",
    level: float = LEVEL,
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
    kept, learned = of[name] - of[base[0]], of[specialist] - of[base[0]]
    return statistics.ratio(kept, learned, table.clusters[complete], level)


def compare(
    results: Sequence[ItemResult],
    systems: Sequence[System],
    *,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[Comparison, ...]:
    """Every composition against the base, every single adapter and every control.

    Both are compared on the same items. A positive difference means that the system is better (for
    losses: that its loss is lower). `adjusted_ci95` covers all rows of one task and part together;
    level: that of the look.
    """
    baselines = [s.name for s in systems if s.kind in (*BASELINES, "control")]
    compositions = [s.name for s in systems if s.kind in COMPOSITIONS]
    rows: list[Comparison] = []
    for task in task_names(results):
        for part in FORMS:
            present = {r.system for r in results if r.task == task and r.part == part}
            first = [(name, part) for name in compositions if name in present]
            second = [(name, part) for name in baselines if name in present]
            table = tabulate(results, [*first, *second], task)
            first = table.comparable(first, second)
            if first and second:
                rows += _comparisons(table, first, second, task, level, seed)
    return tuple(rows)


def _comparisons(
    table: ItemTable,
    first: Sequence[Column],
    second: Sequence[Column],
    task: str,
    level: float,
    seed: int,
) -> list[Comparison]:
    """The rows of each column of `first` against each of `second`, in this order."""
    ordered = sorted(second, key=by_name)
    found = table.differences(first, ordered)
    both = largest(found, (len(first), len(ordered)), level, seed)[2]
    figures = zip(
        found.difference.tolist(),
        found.intervals(found.critical()),
        found.n.tolist(),
        found.intervals(both),
        strict=True,
    )
    rows = {
        (one, other): Comparison(one[0], other[0], task, one[1], *row)
        for (one, other), row in zip(product(first, ordered), figures, strict=True)
    }
    return [rows[pair] for pair in product(first, second)]


def oracles(results: Sequence[ItemResult], systems: Sequence[System]) -> tuple[Oracle, ...]:
    """What the single adapters would score if somebody chose the right one for every item.

    One row for each task and form of the question that at least two single adapters answered.

    The rows are about the items that all of them answered. Losses are neither right nor wrong, so
    they have no rows.
    """
    names = [system.name for system in systems if system.kind == "adapter"]
    rows = []
    for task in task_names(results) if len(names) > 1 else []:
        for part in FORMS:
            table = tabulate(results, [(name, part) for name in names], task)
            complete = np.isfinite(table.values).all(axis=1)
            if not (table.bounded and complete.any()):
                continue
            values = table.values[complete]
            answered = values.max(axis=1)
            rows.append(
                Oracle(
                    task,
                    part,
                    tuple(names),
                    float(answered.mean()),
                    statistics.wilson(answered, table.clusters[complete]),
                    len(answered),
                    float(1 - (1 - values.mean(axis=0)).prod()),
                )
            )
    return tuple(rows)
