"""Statistics of batches of modules, and the figures of their sums."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loraprobe.adapters import Adapter
from loraprobe.diagnostics._diagnostic import Diagnostic, FigureKey, FigureValue
from loraprobe.records import Measurement
from loraprobe.registry import name_of

Named = Mapping[tuple[str, FigureKey], Mapping[str, Tensor]]  # diagnostic and figure -> its sums


@dataclass(frozen=True)
class BatchStatistics:
    """What the modules of one batch add to the figures of n adapters.

    present, finite: [m, n]; inner: [m, n, n], inner products of the updates; sums: statistics over
    the batch; rows: those of each module, empty unless they are reported.
    """

    paths: tuple[str, ...]
    present: Tensor
    finite: Tensor
    inner: Tensor
    sums: Named
    rows: Named

    @property
    def square(self) -> Tensor:
        """||dW||_F^2: [m, n]."""
        return self.inner.diagonal(dim1=1, dim2=2).clamp_min(0)


def figures_of(
    diagnostics: Sequence[Diagnostic],
    adapters: Sequence[Adapter],
    batches: Iterable[BatchStatistics],
) -> Iterator[Measurement]:
    """The figures of whole adapters, then of modules; diagnostics in the order of their names."""
    totals: dict[tuple[str, FigureKey], dict[str, Tensor]] = {}
    rows: dict[tuple[str, FigureKey], list[Mapping[str, Tensor]]] = {}
    paths: list[str] = []
    present: list[list[bool]] = []
    for batch in batches:
        for named, sums in batch.sums.items():
            total = totals.setdefault(named, {})
            for s, values in sums.items():
                total[s] = total.get(s, 0) + values
        for named, own in batch.rows.items():
            rows.setdefault(named, []).append(own)
        paths += batch.paths
        present += batch.present.tolist()
    by_name = {name_of(d): d for d in diagnostics}
    for (name, key), sums in sorted(totals.items(), key=_order):
        figure = by_name[name].figure(sums)
        yield from _measurements(by_name[name], key, figure, adapters)
    for (name, key), parts in sorted(rows.items(), key=_order):
        joined = {s: torch.cat([part[s] for part in parts]) for s in parts[0]}
        figure = by_name[name].figure(joined)
        for m, path in enumerate(paths):
            one = FigureValue(*(None if part is None else part[m] for part in figure))  # type: ignore[arg-type]
            yield from _measurements(by_name[name], key, one, adapters, path, present[m])


def _measurements(
    diagnostic: Diagnostic,
    key: FigureKey,
    figure: FigureValue,
    adapters: Sequence[Adapter],
    module: str | None = None,
    present: Sequence[bool] | None = None,
) -> Iterator[Measurement]:
    """One for each adapter or pair. present: [n], which adapters adapt the module; None for all."""
    values, chances, errors = (None if part is None else part.tolist() for part in figure)
    for place in _places(diagnostic, len(adapters)):
        if present is None or all(present[i] for i in place):
            yield Measurement(
                name=name_of(diagnostic),
                adapters=tuple(dict.fromkeys(adapters[i].name for i in place)),
                value=_at(values, place),
                module=module,
                side=key.side,
                chance=_at(chances, place),
                stderr=_at(errors, place),
                rank=key.rank,
            )


def _places(diagnostic: Diagnostic, n: int) -> Iterator[tuple[int, ...]]:
    """The index of each adapter or pair in the figure's tensor."""
    for i in range(n):
        if diagnostic.of == "each":
            yield (i,)
            continue
        if diagnostic.of == "both":
            yield (i, i)
        for j in range(i + 1, n):
            yield (i, j)


def _order(item: tuple[tuple[str, FigureKey], object]) -> tuple[str, str, int]:
    (name, key), _ = item
    return name, key.side or "", key.rank or 0


def _at(values: list | None, place: tuple[int, ...]) -> float | None:
    if values is None:
        return None
    for i in place:
        values = values[i]
    return values if math.isfinite(values) else None  # type: ignore[arg-type, return-value]
