"""Gains: the best composition against the best of base and single adapters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from loraprobe.defaults import MARGIN
from loraprobe.evaluation import statistics
from loraprobe.evaluation.systems import BASELINES, System
from loraprobe.evaluation.table import Column, Table, by_name, clusters_of, tabulate, task_names
from loraprobe.records import Gain, ItemResult
from loraprobe.sample_size import items_needed

ALPHA = 0.05  # the chance of a wrong decision, both sides together


def gains(
    results: Sequence[ItemResult],
    systems: Sequence[System],
    *,
    margin: float = MARGIN,
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
            rows += _family(results, names, baselines, part, ALPHA, margin, seed, forms=len(asked))
    return tuple(sorted(rows, key=lambda row: row.part != "question"))


def gain(
    results: Sequence[ItemResult],
    compositions: Sequence[str],
    baselines: Sequence[str],
    part: str = "question",
    *,
    alpha: float = ALPHA,
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
    composition that lacks a task has no row. A baseline counts in both of its forms, because one
    that answers step by step needs no composition, and one that answers at once needs no steps;
    the other form counts if all compositions can be compared with it.
    """
    present = {(r.system, r.part) for r in results}
    first = [(s, part) for s in compositions if (s, part) in present]
    own = [(b, part) for b in baselines if (b, part) in present]
    other = "question" if part == "steps" else "steps"
    others = [(b, other) for b in baselines if (b, other) in present]
    if not first or not (own or others):
        return []
    table = tabulate(results, [*first, *own, *others])
    first = table.comparable(first, own)
    second = sorted([*own, *table.comparable(others, first)], key=by_name)
    if not first or not second:
        return []
    shape = (len(first), len(second))
    found = table.differences(first, second)
    lower, upper, _ = statistics.largest(found, shape, 1 - alpha, seed)
    if forms > 1:
        lower = statistics.largest(found, shape, 1 - alpha / forms, seed)[0]
    tasks = task_names(results)
    rows = _least(found, first, second, (1 - alpha, lower, upper), margin)
    task = tasks[0] if len(tasks) == 1 else None
    return sorted(
        (replace(row, task=task, clusters=_clusters(table, row)) for row in rows),
        key=lambda row: (-round(row.difference, 9), -round(row.adjusted_ci95[0], 9)),
    )


def _clusters(table: Table, row: Gain) -> int | None:
    """The number of clusters of the items of a gain, None if every item is its own."""
    pair = table.column(row.system, row.part) - table.column(row.against, row.against_part)
    return clusters_of(table.clusters[np.isfinite(pair)])


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
    plain = found.intervals(found.critical(level))
    lows = found.interval(lower)[0].reshape(shape).min(1).tolist()
    highs = found.interval(upper)[1].reshape(shape).min(1).tolist()
    nearest = found.difference.reshape(shape).argmin(1).tolist()
    rows = []
    for s, (system, part) in enumerate(first):
        against, against_part = second[nearest[s]]
        k = s * len(second) + nearest[s]
        n, difference = int(found.n[k]), float(found.difference[k])
        critical = lower if difference > margin else upper
        needed = items_needed(n, difference - margin, float(found.se[k]), critical)
        decided = lows[s] > margin or highs[s] < margin
        rows.append(
            Gain(
                task=None,
                part=part,
                system=system,
                against=against,
                against_part=against_part,
                difference=difference,
                ci95=plain[k],
                adjusted_ci95=(lows[s], highs[s]),
                n=n,
                n_needed=n if decided else needed,
            )
        )
    return rows
