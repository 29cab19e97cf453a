"""Per-item results as a matrix of items x systems."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from loraprobe.evaluation.statistics import Array, Estimates, Integers, estimate
from loraprobe.records import ItemResult

Column = tuple[str, str]  # system, part


@dataclass(frozen=True)
class ItemTable:
    """`values` [items, columns]: more is better, NaN where a system has no result.

    `clusters` [items] and `strata` [items] number the clusters and the tasks. Losses are stored
    as negative numbers, and `bounded` is False for them.
    """

    columns: tuple[Column, ...]
    values: Array
    clusters: Integers
    strata: Integers
    bounded: bool

    def column(self, system: str, part: str) -> Array:
        return self.values[:, self.columns.index((system, part))]

    def comparable(self, first: Sequence[Column], second: Sequence[Column]) -> list[Column]:
        """The columns of `first` that share items with all of `second` in every task."""
        return [one for one in first if all(self._share(one, other) for other in second)]

    def _share(self, one: Column, other: Column) -> bool:
        both = np.isfinite(self.column(*one)) & np.isfinite(self.column(*other))
        return set(self.strata[both]) == set(self.strata)

    def differences(self, first: Sequence[Column], second: Sequence[Column]) -> Estimates:
        """Paired differences of each column of `first` with each of `second`, as [F * S]."""
        left = np.stack([self.column(*one) for one in first], axis=1)
        right = np.stack([self.column(*one) for one in second], axis=1)
        x = (left[:, :, None] - right[:, None, :]).reshape(len(self.values), -1)
        return estimate(x, self.clusters, self.strata, bounded=self.bounded)


def tabulate(
    results: Iterable[ItemResult], columns: Sequence[Column], task: str | None = None
) -> ItemTable:
    """The results of these columns on one task or (None) all tasks, without empty rows."""
    index = {column: k for k, column in enumerate(columns)}
    rows: dict[tuple[str, str, str], dict[int, float]] = {}
    losses = set()
    for result in results:
        k = index.get((result.system, result.part))
        if k is None or (task is not None and result.task != task):
            continue
        loss = result.metric == "answer_loss"
        losses.add(loss)
        row = rows.setdefault((result.task, result.item, result.group), {})
        row[k] = -result.value if loss else result.value
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


def clusters_of(numbers: Integers) -> int | None:
    """The number of clusters of items, from the cluster of each; None if every item is its own."""
    found = len(np.unique(numbers))
    return found if found < len(numbers) else None


def _numbers(names: Sequence[object]) -> Integers:
    seen: dict[object, int] = {}
    return np.array([seen.setdefault(name, len(seen)) for name in names], dtype=np.int64)


def by_name(column: Column) -> tuple[bool, Column]:
    """A key that puts the base first, then names; figures do not depend on the input's order."""
    return column[0] != "base", column


def task_names(results: Iterable[ItemResult]) -> list[str]:
    """The tasks of the results, in their order."""
    return list(dict.fromkeys(result.task for result in results))
