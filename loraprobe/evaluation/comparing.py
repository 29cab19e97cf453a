"""Scores, paired comparisons and retention, computed from per-item results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain, product

import numpy as np

from loraprobe.evaluation import statistics
from loraprobe.evaluation.plan import COMPOSITIONS, System
from loraprobe.evaluation.selection import largest
from loraprobe.evaluation.statistics import LEVEL
from loraprobe.evaluation.table import (
    Column,
    ItemTable,
    by_name,
    clusters_of,
    tabulate,
    task_names,
)
from loraprobe.records import BASELINES, FORMS, Comparison, Interval, ItemResult, Score
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
    """Every composition against the base, every single adapter and every control, then the best
    option against every other one.

    Both are compared on the same items. A positive difference means that the system is better (for
    losses: that its loss is lower). `adjusted_ci95` covers all rows of one task and part together;
    level: that of the look. Rows with the best option (`_with_best`) are left out where a
    composition is compared with the same baseline in the same form already.
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
    return (*rows, *_with_best(results, systems, level, seed))


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


def _with_best(
    results: Sequence[ItemResult], systems: Sequence[System], level: float, seed: int
) -> list[Comparison]:
    """The option with the best mean over the tasks, minus every other option, on each task.

    An option is a system that is no control, in one form of the question; the two forms of one
    system are two options. `adjusted_ci95` covers all options of one task together, as in Hsu's
    multiple comparisons with the best (1984). Systems that answered fewer items than the others
    are left out.
    """
    kinds = {system.name: system.kind for system in systems if system.kind != "control"}
    asked = Counter((r.system, r.part) for r in results if r.part in FORMS and r.system in kinds)
    most = {part: max(n for c, n in asked.items() if c[1] == part) for _, part in asked}
    columns = sorted((c for c in asked if asked[c] == most[c[1]]), key=by_name)
    if len(columns) < 2:
        return []
    tasks, whole = task_names(results), tabulate(results, columns)
    means = [np.nanmean(whole.values[whole.strata == k], axis=0) for k in range(len(tasks))]
    mean = np.nan_to_num(np.mean(means, axis=0).round(9), nan=-np.inf)  # a task is missing
    best = columns[int(mean.argmax())]
    others = whole.comparable([column for column in columns if column != best], [best])
    found: list[Comparison] = []
    for task in tasks if others else ():
        table = tabulate(results, columns, task)
        for row, (name, part) in zip(
            _comparisons(table, [best], others, task, level, seed), others, strict=True
        ):
            known = kinds[best[0]] in COMPOSITIONS and kinds[name] in BASELINES and part == best[1]
            if not known:
                found.append(replace(row, against_part=part))
    return found
