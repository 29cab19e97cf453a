"""Statistics of batches of modules, and the figures of their sums."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

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


@dataclass
class Figures:
    """The statistics so far: sums over modules, and those of each module if `per_module`."""

    diagnostics: Sequence[Diagnostic]
    adapters: Sequence[Adapter]
    totals: dict[tuple[str, FigureKey], dict[str, Tensor]] = field(default_factory=dict)
    rows: dict[tuple[str, FigureKey], list[Mapping[str, Tensor]]] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    present: list[Tensor] = field(default_factory=list)

    def take(self, batch: BatchStatistics) -> None:
        """Add the statistics of one batch of modules."""
        for key, sums in batch.sums.items():
            total = self.totals.setdefault(key, {})
            for s, values in sums.items():
                total[s] = total.get(s, 0) + values
        for key, rows in batch.rows.items():
            self.rows.setdefault(key, []).append(rows)
        self.paths += batch.paths
        self.present.append(batch.present)

    def measurements(self) -> Iterator[Measurement]:
        """Whole adapters first, then modules; diagnostics in the order of their names."""
        by_name = {name_of(d): d for d in self.diagnostics}
        for (name, key), sums in sorted(self.totals.items(), key=_order):
            figure = by_name[name].figure(sums)
            yield from self._measurements(by_name[name], name, key, figure, None)
        present = torch.cat(self.present) if self.present else torch.zeros(0, 0)
        for (name, key), rows in sorted(self.rows.items(), key=_order):
            joined = {s: torch.cat([row[s] for row in rows]) for s in rows[0]}
            figure = by_name[name].figure(joined)
            for m, path in enumerate(self.paths):
                one = FigureValue(*(None if part is None else part[m] for part in figure))  # type: ignore[arg-type]
                yield from self._measurements(by_name[name], name, key, one, path, present[m])

    def _measurements(
        self,
        diagnostic: Diagnostic,
        name: str,
        key: FigureKey,
        figure: FigureValue,
        module: str | None,
        present: Tensor | None = None,
    ) -> Iterator[Measurement]:
        values, chances, errors = (None if part is None else part.tolist() for part in figure)
        for place in self._places(diagnostic):
            if present is not None and not all(present[i] for i in place):
                continue
            yield Measurement(
                name=name,
                adapters=tuple(dict.fromkeys(self.adapters[i].name for i in place)),
                value=_at(values, place),
                module=module,
                side=key.side,
                chance=_at(chances, place),
                stderr=_at(errors, place),
                rank=key.rank,
            )

    def _places(self, diagnostic: Diagnostic) -> Iterator[tuple[int, ...]]:
        """The index of each adapter or pair in the figure's tensor."""
        n = len(self.adapters)
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
