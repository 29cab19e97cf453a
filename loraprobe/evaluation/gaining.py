"""Gains: the best composition against the best of base and single adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from loraprobe.defaults import ALPHA, MARGIN
from loraprobe.evaluation import statistics
from loraprobe.evaluation.plan import System
from loraprobe.evaluation.selection import largest, reach
from loraprobe.evaluation.table import Column, ItemTable, by_name, clusters_of, tabulate, task_names
from loraprobe.records import BASELINES, FORMS, Gain, ItemResult
from loraprobe.records.estimates import items_needed
from loraprobe.tasks import Task, judge


def gains(
    results: Sequence[ItemResult],
    systems: Sequence[System],
    *,
    margin: float = MARGIN,
    seed: int = 0,
    alpha: float = ALPHA,
    tasks: Sequence[Task] = (),
) -> tuple[Gain, ...]:
    """The gains of all merges and routers, then of all chains, the best first; plain form first.

    Merges with routers and chains are separate families, because a chain is the alternative to
    composing weights. If a question is asked in both forms, a gain in one of them is a success. The
    lower ends of the forms that contend for the larger gain therefore share alpha. The upper ends
    use all of alpha, since a failure needs both forms. alpha: that of the look (`rounds`).

    tasks: with the metrics that their gold answers need. Where exact match judged instead, each
    gain also has the figures by the needed metric.
    """
    if again := _judged_as_needed(results, tasks):
        own, others = (
            gains(judged, systems, margin=margin, seed=seed, alpha=alpha)
            for judged in (results, again)
        )
        by = {(row.system, row.part): row for row in others}
        pairs = ((row, by[row.system, row.part]) for row in own)
        return tuple(
            replace(row, checked=one.difference, checked_ci95=one.adjusted_ci95)
            for row, one in pairs
        )
    baselines = [s.name for s in systems if s.kind in BASELINES]
    families = [("merge", "router"), ("chain",)]
    rows: list[Gain] = []
    for family in families:
        names = [s.name for s in systems if s.kind in family]
        asked = {r.part for r in results if r.system in names} & {*FORMS}
        grids = [_grid(results, names, baselines, part) for part in sorted(asked, reverse=True)]
        found = [grid for grid in grids if grid is not None]
        for grid, forms in zip(found, _sharing(found), strict=True):
            rows += _family(grid, alpha, margin, seed, forms)
    return tuple(sorted(rows, key=lambda row: row.part != "question"))


def _judged_as_needed(results: Sequence[ItemResult], tasks: Sequence[Task]) -> list[ItemResult]:
    """The results with what exact match judged, judged by the metric that the gold answers need.

    Kept texts are judged, so a reply of several lines counts by its first. Empty where no metric
    differs.
    """
    golds = {
        (task.name, item.id): (task.needs, item.answers)
        for task in tasks
        if task.needs != "exact_match"
        for item in task.items
    }
    found = []
    for row in results:
        metric, answers = golds.get((row.task, row.item), ("", ()))
        if metric and row.metric == "exact_match" and row.part in FORMS:
            right = judge(metric, row.text, answers).right
            row = replace(row, metric=metric, value=float(right))
        found.append(row)
    return [] if found == list(results) else found


@dataclass(frozen=True)
class _Grid:
    """Paired differences of compositions (`first`) and baselines (`second`), as [first * second].

    task: None where there are several.
    """

    table: ItemTable
    found: statistics.Estimates
    first: list[Column]
    second: list[Column]
    task: str | None


def _grid(
    results: Sequence[ItemResult], compositions: Sequence[str], baselines: Sequence[str], part: str
) -> _Grid | None:
    """All pairs on one form of the question; None if nothing can be compared.

    With several tasks the difference is the plain mean over tasks, and a composition that lacks a
    task is left out. A baseline counts in both of its forms, because one that answers step by step
    needs no composition, and one that answers at once needs no steps; the other form counts if all
    compositions can be compared with it.
    """
    present = {(r.system, r.part) for r in results}
    first = [(s, part) for s in compositions if (s, part) in present]
    own = [(b, part) for b in baselines if (b, part) in present]
    other = "question" if part == "steps" else "steps"
    others = [(b, other) for b in baselines if (b, other) in present]
    if not first or not (own or others):
        return None
    table = tabulate(results, [*first, *own, *others])
    first = table.comparable(first, own)
    second = sorted([*own, *table.comparable(others, first)], key=by_name)
    if not first or not second:
        return None
    tasks = task_names(results)
    task = tasks[0] if len(tasks) == 1 else None
    return _Grid(table, table.differences(first, second), first, second, task)


def _sharing(grids: Sequence[_Grid]) -> list[int]:
    """Among how many forms the lower ends of each form divide alpha.

    A form that does not contend divides it among all of them.
    """
    ends = [reach(grid.found, (len(grid.first), len(grid.second))) for grid in grids]
    best = max((low.max() for low, _ in ends), default=0.0)
    contends = [bool(high.max() >= best) for _, high in ends]
    return [sum(contends) if one else len(grids) for one in contends]


def _family(grid: _Grid, alpha: float, margin: float, seed: int, forms: int) -> list[Gain]:
    """One row for each composition, the best first: its smallest difference to a baseline.

    If no composition reaches the margin, some lower end lies above it in at most alpha / 2 of all
    runs, over all `forms` of the question together. If one reaches it, all upper ends lie below it
    in at most alpha / 2.
    """
    found, shape = grid.found, (len(grid.first), len(grid.second))
    lower, upper, _ = largest(found, shape, 1 - alpha, seed, forms)
    plain = found.intervals(found.critical())
    lows = found.interval(lower)[0].reshape(shape).min(1).tolist()
    highs = found.interval(upper)[1].reshape(shape).min(1).tolist()
    rows = []
    for s, (first, low, high) in enumerate(zip(grid.first, lows, highs, strict=True)):
        nearest = int(found.difference.reshape(shape)[s].argmin())
        second, k = grid.second[nearest], s * shape[1] + nearest
        n, difference = int(found.n[k]), float(found.difference[k])
        value = lower if difference > margin else upper
        needed = items_needed(n, difference - margin, float(found.se[k]), value)
        pair = grid.table.column(*first) - grid.table.column(*second)
        row = Gain(
            task=grid.task,
            part=first[1],
            system=first[0],
            against=second[0],
            against_part=second[1],
            difference=difference,
            ci95=plain[k],
            adjusted_ci95=(low, high),
            n=n,
            n_needed=n if low > margin or high < margin else needed,
            clusters=clusters_of(grid.table.clusters[np.isfinite(pair)]),
        )
        rows.append(row)
    return sorted(rows, key=lambda g: (-round(g.difference, 9), -round(g.adjusted_ci95[0], 9)))
