"""Scores, retentions, paired comparisons and gains, computed from per-item results."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product

import numpy as np

from loraprobe.defaults import ALPHA, KNOWN, MARGIN, SAID_OTHERWISE
from loraprobe.evaluation import statistics
from loraprobe.evaluation.questions import BASE, System
from loraprobe.evaluation.statistics import LEVEL, Array, Differences, Integers
from loraprobe.records import (
    ALONE,
    BASELINES,
    COMPOSITIONS,
    FORMS,
    MULTI_ADAPTER_KINDS,
    QUESTION,
    STEPS,
    TOGETHER,
    Comparison,
    Coverage,
    Gain,
    GuardScore,
    Interval,
    ItemPart,
    ItemResult,
    Score,
    by_change,
    effort,
    items_needed,
    references,
)
from loraprobe.tasks import METRICS, Task, is_generated

SystemPart = tuple[str, ItemPart]  # system, part
MOST_OTHERS = 12  # answers of a task that are looked for in its replies


# ---- tables --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ItemTable:
    """`values` [items, columns]: more is better, NaN where a system has no result.

    `clusters` [items] and `strata` [items] number the clusters and the tasks. Losses are stored
    as negative numbers, and `bounded` is False for them.
    """

    columns: tuple[SystemPart, ...]
    values: Array
    clusters: Integers
    strata: Integers
    bounded: bool

    def column(self, system: str, part: ItemPart) -> Array:
        return self.values[:, self.columns.index((system, part))]

    def comparable(
        self, first: Sequence[SystemPart], second: Sequence[SystemPart]
    ) -> list[SystemPart]:
        """The columns of `first` that share items with all of `second` in every task."""
        tasks = set(self.strata)

        def share(one: SystemPart, other: SystemPart) -> bool:
            both = np.isfinite(self.column(*one)) & np.isfinite(self.column(*other))
            return set(self.strata[both]) == tasks

        return [one for one in first if all(share(one, other) for other in second)]

    def differences(self, first: Sequence[SystemPart], second: Sequence[SystemPart]) -> Differences:
        """Paired differences of each column of `first` with each of `second`, as [F * S]."""
        left = np.stack([self.column(*one) for one in first], axis=1)
        right = np.stack([self.column(*one) for one in second], axis=1)
        x = (left[:, :, None] - right[:, None, :]).reshape(len(self.values), -1)
        return statistics.estimate(x, self.clusters, self.strata, bounded=self.bounded)


def tabulate(
    results: Iterable[ItemResult], columns: Sequence[SystemPart], task: str | None = None
) -> ItemTable:
    """The results of these columns on one task or (None) all tasks, without empty rows."""
    index = {column: k for k, column in enumerate(columns)}
    rows: dict[tuple[str, str, str], dict[int, float]] = {}
    losses = set()
    for result in results:
        k = index.get((result.system, result.part))
        if k is None or (task is not None and result.task != task):
            continue
        losses.add(result.is_loss)
        row = rows.setdefault((result.task, result.item, result.group), {})
        row[k] = result.merit
    if len(losses) > 1:
        raise ValueError("losses and right-or-wrong results do not go into one table")
    values = np.full((len(rows), len(columns)), np.nan)
    for i, row in enumerate(rows.values()):
        values[i, list(row)] = list(row.values())
    return ItemTable(
        tuple(columns),
        values,
        _numbers([(name, group) for name, _, group in rows]),
        _numbers([name for name, _, _ in rows]),
        not any(losses),
    )


def _clusters_of(numbers: Integers) -> int | None:
    """The number of clusters of items, from the cluster of each; None if every item is its own."""
    found = len(np.unique(numbers))
    return found if found < len(numbers) else None


def _numbers(names: Sequence[object]) -> Integers:
    seen: dict[object, int] = {}
    return np.array([seen.setdefault(name, len(seen)) for name in names], dtype=np.int64)


def _by_name(column: SystemPart) -> tuple[bool, SystemPart]:
    """A key that puts the base first, then names; figures do not depend on the input's order."""
    return column[0] != "base", column


def task_names(results: Iterable[ItemResult]) -> list[str]:
    """The tasks of the results, in their order."""
    return list(dict.fromkeys(result.task for result in results))


# ---- scores --------------------------------------------------------------------------------------


def score(
    results: Sequence[ItemResult], systems: Sequence[System], *, level: float = LEVEL
) -> tuple[Score, ...]:
    """One row for every system, task and part that has results, in the order of `systems`.

    Right-or-wrong metrics have Wilson's interval, losses a t interval; both account for clusters.
    With several tasks, the rows of all systems except the base have `retention`, whose interval has
    the level of the round.
    """
    cells: dict[tuple[str, ItemPart], dict[str, list[ItemResult]]] = {}
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
    replies = [k for k, r in enumerate(mine) if is_generated(r.metric)]
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
        clusters=_clusters_of(table.clusters),
    )


def right_together(results: Iterable[ItemResult], systems: Sequence[System]) -> list[Coverage]:
    """For each task the two adapters of which one or the other is right most often, and how often.

    Only what is more than either alone by SAID_OTHERWISE is a row.
    """
    adapters = [system.name for system in systems if system.kind == "adapter"]
    right: dict[str, dict[str, dict[str, bool]]] = {}
    for row in results:
        if row.part == QUESTION and row.system in adapters and not row.is_loss:
            right.setdefault(row.task, {}).setdefault(row.system, {})[row.item] = row.value == 1.0
    rows = []
    for task, by_adapter in right.items():
        items = set.intersection(*(set(own) for own in by_adapter.values()))
        held = {name: {i for i in items if own[i]} for name, own in by_adapter.items()}
        pairs = itertools.combinations(held, 2)
        both, pair = max(((len(held[a] | held[b]), (a, b)) for a, b in pairs), default=(0, ()))
        if both - max(map(len, held.values())) > SAID_OTHERWISE * len(items):
            rows.append(Coverage(TOGETHER, task, both / len(items), len(items), adapters=pair))
    return rows


def named_alone(results: Iterable[ItemResult], tasks: Sequence[Task]) -> list[Coverage]:
    """How often a system names the right answer, and not another one of the task beside it.

    A row for a task, a system and a form in which most replies hold a right answer and many of them
    are wrong. A reply that lists what the answer may be holds it by chance.
    """
    golds = {(task.name, item.id): item.answers for task in tasks for item in task.items}
    asked: dict[tuple[str, str, ItemPart], list[ItemResult]] = {}
    for row in results:
        if row.part in FORMS and is_generated(row.metric) and (row.task, row.item) in golds:
            asked.setdefault((row.task, row.system, row.part), []).append(row)
    found = []
    for (task, system, part), rows in asked.items():
        held = [row for row in rows if row.contains]
        wrong = [row for row in held if row.value < 1]
        if len(held) < KNOWN * len(rows) or len(wrong) < SAID_OTHERWISE * len(rows):
            continue
        common = Counter(golds[task, row.item][0] for row in rows).most_common(MOST_OTHERS)
        others = [answer for answer, _ in common]
        listed = sum(_names_another(row, golds[task, row.item], others) for row in wrong)
        share = (len(held) - listed) / len(rows)
        found.append(Coverage(f"{ALONE}_{part}", task, share, len(rows), adapters=(system,)))
    return found


def _names_another(row: ItemResult, own: Sequence[str], answers: Sequence[str]) -> bool:
    """Whether a reply holds one of these answers that does not stand in a right one."""
    metric = METRICS[row.metric]
    if metric.patterns:
        return False
    others = (one for one in answers if not any(metric.judge(gold, [one]).contains for gold in own))
    return any(metric.judge(row.text, [other]).contains for other in others)


def retention(
    results: Sequence[ItemResult],
    systems: Sequence[System],
    name: str,
    task: str,
    part: ItemPart = QUESTION,
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
    of = {column[0]: values[:, k] for k, column in enumerate(columns)}
    specialist = max(singles, key=lambda single: of[single].mean())
    if specialist == name:
        return None
    kept, learned = of[name] - of[base[0]], of[specialist] - of[base[0]]
    return statistics.fieller(kept, learned, table.clusters[complete], level)


def shares_right(results: Sequence[ItemResult], tasks: int) -> dict[tuple[str, str], float]:
    """(system, form of the question) -> the smallest share of right answers on a task.

    Forms that are not asked in every task are left out. A loss has no ceiling, so it counts as 0.
    """
    values: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in results:
        of = values.setdefault((row.system, row.part), {}).setdefault(row.task, [])
        of.append(0.0 if row.is_loss else row.value)
    return {
        key: min(sum(own) / len(own) for own in by_task.values())
        for key, by_task in values.items()
        if key[1] in FORMS and len(by_task) == tasks
    }


# ---- comparisons ---------------------------------------------------------------------------------


def compare(
    results: Sequence[ItemResult],
    systems: Sequence[System],
    *,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[Comparison, ...]:
    """Every composition against the base, every single adapter and its own controls, then the best
    option against every other one, then every reference against all options.

    Both are compared on the same items. A positive difference means that the system is better (for
    losses: that its loss is lower). `adjusted_ci95` covers all rows of one task and part together;
    level: that of the round. Rows with the best option (`_with_best`) are left out where a
    composition is compared with the same baseline in the same form already. The rows of a reference
    are a family of their own, so that it changes no interval of the others.
    """
    baselines = [s.name for s in systems if s.kind in (*BASELINES, "control")]
    compositions = [s.name for s in systems if s.kind in MULTI_ADAPTER_KINDS]
    of_one = {s.name: s.of for s in systems if s.of}
    rows: list[Comparison] = []
    for task, part in product(task_names(results), FORMS):
        present = {r.system for r in results if r.task == task and r.part == part}
        first = [(name, part) for name in compositions if name in present]
        second = [(name, part) for name in baselines if name in present]
        table = tabulate(results, [*first, *second], task)
        first = table.comparable(first, second)
        if first and second:
            found = _comparisons(table, first, second, task, level, seed)
            rows += [row for row in found if of_one.get(row.against, row.system) == row.system]
    added = references()
    options = [s for s in systems if s.kind != "control" and s.kind not in added]
    rows += _with_best(results, options, level, seed)
    for reference in (s for s in systems if s.kind in added):
        rows += _with_best(results, [*options, reference], level, seed, reference.name)
    return tuple(rows)


def _comparisons(
    table: ItemTable,
    first: Sequence[SystemPart],
    second: Sequence[SystemPart],
    task: str,
    level: float,
    seed: int,
) -> list[Comparison]:
    """The rows of each column of `first` against each of `second`, in this order."""
    ordered = sorted(second, key=_by_name)
    found = table.differences(first, ordered)
    both = statistics.largest_of_all(found, level, seed)
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
    results: Sequence[ItemResult],
    systems: Sequence[System],
    level: float,
    seed: int,
    name: str = "",
) -> list[Comparison]:
    """The option with the best mean over the tasks, minus every other option, on each task.

    Of several with that mean it is the simplest, which is the one that a verdict advises. An option
    is a system in one form of the question; the two forms of one system are two options.
    name: of a system of which the better option is compared in place of the best of all.
    `adjusted_ci95` covers all options of one task together, as in Hsu's multiple comparisons with
    the best (1984). Systems that answered fewer items than the others are left out.
    """
    kind_of = {system.name: system.kind for system in systems}
    asked = Counter((r.system, r.part) for r in results if r.part in FORMS and r.system in kind_of)
    most = {part: max(n for c, n in asked.items() if c[1] == part) for _, part in asked}
    columns = sorted((c for c in asked if asked[c] == most[c[1]]), key=_by_name)
    if len(columns) < 2:
        return []
    tasks, whole = task_names(results), tabulate(results, columns)
    values = np.ma.masked_invalid(whole.values)
    # -inf where an option did not answer a task
    means = [values[whole.strata == k].mean(axis=0).filled(-np.inf) for k in range(len(tasks))]
    merits = np.mean(means, axis=0).round(9)
    chosen = [k for k, column in enumerate(columns) if name in ("", column[0])]
    if not chosen:
        return []

    def rank(k: int) -> tuple[object, ...]:
        system, part = columns[k]
        return -merits[k], effort(system, kind_of[system], part), by_change(system)

    best = columns[min(chosen, key=rank)]
    others = whole.comparable([column for column in columns if column != best], [best])
    found: list[Comparison] = []
    for task in tasks if others else ():
        table = tabulate(results, columns, task)
        for row, (other, part) in zip(
            _comparisons(table, [best], others, task, level, seed), others, strict=True
        ):
            known = (
                kind_of[best[0]] in MULTI_ADAPTER_KINDS
                and kind_of[other] in BASELINES
                and part == best[1]
            )
            if not known:
                found.append(replace(row, against_part=part))
    return found


# ---- gains ---------------------------------------------------------------------------------------


def measure_gains(
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
    lower ends of the forms that contend for the larger gain therefore share alpha; the lower end of
    a form that does not contend divides it among all forms. The upper ends use all of alpha, since
    a failure needs both forms. alpha: that of the round (`questions.rounds`).

    tasks: with the metrics that their gold answers need. Where exact match judged instead, each
    gain also has the figures by the needed metric.
    """
    baselines = [s.name for s in systems if s.kind in BASELINES]
    rows: list[Gain] = []
    for family in (COMPOSITIONS, ("chain",)):
        names = [s.name for s in systems if s.kind in family]
        asked = {r.part for r in results if r.system in names} & {*FORMS}
        grids = [_grid(results, names, baselines, part) for part in sorted(asked, reverse=True)]
        found = [grid for grid in grids if grid is not None]
        reaches = [statistics.reach(grid.found, grid.shape) for grid in found]
        best = max((low.max() for low, _ in reaches), default=0.0)
        contends = [bool(high.max() >= best) for _, high in reaches]
        for grid, one in zip(found, contends, strict=True):
            rows += grid.gains(alpha, margin, seed, sum(contends) if one else len(found))
    rows.sort(key=lambda row: row.part != QUESTION)
    if judged := _judged_as_needed(results, tasks):
        again = measure_gains(judged, systems, margin=margin, seed=seed, alpha=alpha)
        needed = {(row.system, row.part): row for row in again}
        for at, row in enumerate(rows):
            other = needed[row.system, row.part]
            rows[at] = replace(row, checked=other.difference, checked_ci95=other.adjusted_ci95)
    return tuple(rows)


def guard_scores(
    results: Sequence[ItemResult], guards: Sequence[Task], margin: float, alpha: float
) -> tuple[GuardScore, ...]:
    """How every system but the base did on each guard, beside the base on the same items.

    The form counts in which the base scores more. alpha: that of the round. All guards have to be
    kept, so each lower end uses all of it; one that is lost is enough, so the upper ends divide it.
    A system that answered only an earlier round has a row where it was shown to lose the guard.
    """
    found = list[GuardScore]()
    for guard in guards:
        own = [row for row in results if row.task == guard.name]
        whole = tabulate(own, [(BASE, part) for part in FORMS])
        answered = np.isfinite(whole.values).sum(0) == len(guard.items)
        if not answered.any():
            continue
        best = int(np.where(answered, whole.values.mean(0), -np.inf).argmax())
        part = FORMS[best]
        for name in dict.fromkeys(row.system for row in own if row.system != BASE):
            table = tabulate(own, [(name, part), (BASE, part)])
            both = np.isfinite(table.values).all(1)
            x, clusters = table.values[both, :1] - table.values[both, 1:], table.clusters[both]
            compared = statistics.estimate(x, clusters, bounded=table.bounded)
            low = compared.interval(compared.critical(1 - alpha))[0]
            high = compared.interval(compared.critical(1 - alpha / len(guards)))[1]
            sign = 1 if table.bounded else -1
            value, base = (sign * table.values[both]).mean(0).tolist()
            row = GuardScore(
                task=guard.name.rpartition("@")[0],
                system=name,
                part=part,
                metric="+".join(sorted({r.metric for r in own if r.part == part})),
                value=value,
                base=base,
                difference=float(compared.difference[0]),
                ci95=(float(low[0]), float(high[0])),
                margin=margin,
                n=len(x),
                clusters=_clusters_of(clusters),
            )
            if len(x) == len(guard.items) or row.outcome == "unlikely":
                found.append(row)
    return tuple(found)


def guards_of_chain(rows: Sequence[GuardScore], members: Collection[str]) -> tuple[GuardScore, ...]:
    """What a chain makes of each guard: what that of its members does that keeps it least.

    members: the adapters that answer its hops. Each guard that they all answered has a row.
    """
    found = list[GuardScore]()
    for task in dict.fromkeys(row.task for row in rows):
        own = [row for row in rows if row.task == task and row.system in members]
        lost = any(row.outcome == "unlikely" for row in own)
        if own and (lost or len(own) == len(members)):
            worst = min(own, key=lambda row: row.difference)
            found.append(replace(worst, system="chain"))
    return tuple(found)


def beaten(results: Sequence[ItemResult], names: Sequence[str], alpha: float) -> set[str]:
    """The systems that are shown to be worse than the best of them, in every form they answered.

    With several tasks the plain means over tasks are compared. alpha: that of the round, divided
    among the comparisons.
    """
    shown: dict[str, list[bool]] = {}
    for part in FORMS:
        present = {r.system for r in results if r.part == part}
        columns = [(name, part) for name in names if name in present]
        if not columns:
            continue
        table = tabulate(results, columns)
        columns = table.comparable(columns, columns[:1])
        mean = table.differences(columns, columns[:1]).difference
        found = table.differences(columns, [columns[int(mean.argmax())]])
        high = found.interval(found.critical(1 - alpha / max(1, len(columns) - 1)))[1]
        for (name, _), worse in zip(columns, (high < 0).tolist(), strict=True):
            shown.setdefault(name, []).append(worse)
    return {name for name, worse in shown.items() if all(worse)}


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
            right = METRICS[metric].judge(row.text, answers).right
            row = replace(row, metric=metric, value=float(right))
        found.append(row)
    return [] if found == list(results) else found


@dataclass(frozen=True)
class _Grid:
    """Paired differences of compositions (`first`) and baselines (`second`), as [first * second].

    task: None where there are several.
    """

    table: ItemTable
    found: Differences
    first: list[SystemPart]
    second: list[SystemPart]
    task: str | None

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.first), len(self.second)

    def gains(self, alpha: float, margin: float, seed: int, forms: int) -> list[Gain]:
        """One row for each composition, the best first: its smallest difference to a baseline.

        If no composition reaches the margin, some lower end lies above it in at most alpha / 2 of
        all runs, over all `forms` of the question together. If one reaches it, all upper ends lie
        below it in at most alpha / 2.
        """
        found, shape = self.found, self.shape
        lower, upper = statistics.largest(found, shape, 1 - alpha, seed, forms)
        plain = found.intervals(found.critical())
        lows = found.interval(lower)[0].reshape(shape).min(1).tolist()
        highs = found.interval(upper)[1].reshape(shape).min(1).tolist()
        rows = []
        for s, (first, low, high) in enumerate(zip(self.first, lows, highs, strict=True)):
            nearest = int(found.difference.reshape(shape)[s].argmin())
            second, k = self.second[nearest], s * shape[1] + nearest
            n, difference = int(found.n[k]), float(found.difference[k])
            critical = lower if difference > margin else upper
            needed = items_needed(n, difference - margin, float(found.se[k]), critical)
            both = np.isfinite(self.table.column(*first) - self.table.column(*second))
            row = Gain(
                task=self.task,
                part=first[1],
                system=first[0],
                against=second[0],
                against_part=second[1],
                difference=difference,
                ci95=plain[k],
                adjusted_ci95=(low, high),
                n=n,
                n_needed=n if low > margin or high < margin else needed,
                clusters=_clusters_of(self.table.clusters[both]),
            )
            rows.append(row)
        return sorted(rows, key=lambda g: (-round(g.difference, 9), -round(g.adjusted_ci95[0], 9)))


def _grid(
    results: Sequence[ItemResult],
    compositions: Sequence[str],
    baselines: Sequence[str],
    part: ItemPart,
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
    other = QUESTION if part == STEPS else STEPS
    others = [(b, other) for b in baselines if (b, other) in present]
    if not first or not (own or others):
        return None
    table = tabulate(results, [*first, *own, *others])
    first = table.comparable(first, own)
    second = sorted([*own, *table.comparable(others, first)], key=_by_name)
    if not first or not second:
        return None
    tasks = task_names(results)
    task = tasks[0] if len(tasks) == 1 else None
    return _Grid(table, table.differences(first, second), first, second, task)
