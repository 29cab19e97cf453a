"""diagnose: all diagnostics in one pass over the modules of all adapters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from loraprobe.adapters import Adapter, natural
from loraprobe.base import Base
from loraprobe.diagnostics._diagnostic import (
    DIAGNOSTICS,
    Diagnostic,
    FactorDiagnostic,
    FigureKey,
    FigureValue,
    GramDiagnostic,
    Module,
    Statistics,
)
from loraprobe.errors import UsageError
from loraprobe.lora.gram_batches import Updates, gram_matrices
from loraprobe.lora.grams import GramMatrices
from loraprobe.records import Measurement, Progress
from loraprobe.registry import name_of

D = TypeVar("D", bound=Diagnostic)


def diagnose(
    adapters: Sequence[Adapter],
    *,
    per_module: bool = False,
    base: Base | None = None,
    only: Collection[str] | None = None,
    on_demand: Collection[str] = (),
    exact: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    observers: Sequence[Callable[[GramMatrices], None]] = (),
) -> tuple[Measurement, ...]:
    """Diagnostics of all adapters and pairs: first of whole adapters, then of each module.

    only: the names of the diagnostics to run, instead of all. on_demand: names to add, also with
    options ("intruder_dimensions:k=5"). Diagnostics that need base weights run if `base` is given.
    exact: count instead of sampling. observers: called with every batch of Gram matrices, so that
    `compatibility` does not have to read the files again. A module is reported for the adapters
    that adapt it, and for the pairs of which both do. A figure that does not exist (0/0, a NaN in
    the file, shapes that differ) has the value None.

    Raises UsageError for an unknown name, or one that needs a base when there is none.
    """
    chosen = choose(base is not None, only, on_demand)
    chosen = [_with(d, exact=exact, seed=seed) for d in chosen if d.of != "pair" or adapters[1:]]
    run = _Statistics(chosen, adapters, base, per_module)
    paths = sorted({path for a in adapters for path in a.layout}, key=natural)
    report = None if progress is None else lambda done, total: progress("diagnose", done, total)
    batches = gram_matrices(
        [a.modules for a in adapters],
        paths,
        rank=max((a.rank_range[1] for a in adapters), default=0),
        visitor=run.observe,
        progress=report,
    )
    for grams in batches:
        for observer in observers:
            observer(grams)
        run.take(grams)
    return tuple(run.measurements())


def choose(
    has_base: bool, only: Collection[str] | None = None, on_demand: Collection[str] = ()
) -> list[Diagnostic]:
    """The diagnostics to run, in the order of their names."""
    if only is None:
        usual = [c for c in DIAGNOSTICS if not c.on_demand and (has_base or not c.needs_base)]
        found = {name_of(c): c() for c in usual}
    else:
        found = {}
    for spec in [*(only or ()), *on_demand]:
        diagnostic = DIAGNOSTICS.make(spec)
        found[name_of(diagnostic)] = diagnostic
        if diagnostic.needs_base and not has_base:
            raise UsageError(
                f"{name_of(diagnostic)} compares with the base's weights; give the base model with "
                "--base."
            )
    return [found[name] for name in sorted(found)]


def _with(diagnostic: D, **options: object) -> D:
    """The diagnostic with the caller's `exact` and `seed` in place of its defaults."""
    given = {
        f.name: options[f.name]
        for f in dataclasses.fields(diagnostic)  # type: ignore[arg-type]
        if f.name in options and getattr(diagnostic, f.name) == f.default
    }
    return dataclasses.replace(diagnostic, **given)  # type: ignore[type-var]


@dataclass
class _Statistics:
    """The statistics so far: sums over modules, and those of each module if `per_module`."""

    diagnostics: list[Diagnostic]
    adapters: Sequence[Adapter]
    base: Base | None
    per_module: bool
    observed: dict[tuple[str, ...], list[tuple[str, Statistics]]] = field(default_factory=dict)
    totals: dict[tuple[str, FigureKey], dict[str, Tensor]] = field(default_factory=dict)
    rows: dict[tuple[str, FigureKey], list[dict[str, Tensor]]] = field(default_factory=dict)
    paths: list[str] = field(default_factory=list)
    present: list[Tensor] = field(default_factory=list)

    def observe(self, grams: GramMatrices, updates: Sequence[Updates]) -> None:
        """Compute the statistics of one batch of modules; called in several threads."""
        modules = [Module(*one, self.base) for one in zip(grams.paths, updates, strict=True)]
        found = []
        for diagnostic in self.diagnostics:
            if isinstance(diagnostic, GramDiagnostic):
                statistics = diagnostic.observe(grams)
            elif isinstance(diagnostic, FactorDiagnostic):
                statistics = _together([diagnostic.observe(module) for module in modules])
            found.append((name_of(diagnostic), statistics))
        self.observed[grams.paths] = found

    def take(self, grams: GramMatrices) -> None:
        """Add the statistics of one batch of modules."""
        for name, statistics in self.observed.pop(grams.paths):
            self._add(name, grams, statistics)
        self.paths += grams.paths
        self.present.append(grams.present)

    def _add(self, name: str, grams: GramMatrices, statistics: Statistics) -> None:
        fine = grams.finite
        pair = fine[:, :, None] & fine[:, None, :] & grams.comparable
        for key, sums in statistics.items():
            known = {
                s: values.masked_fill(~(fine if values.ndim == 2 else pair), torch.nan)
                for s, values in sums.items()
            }
            total = self.totals.setdefault((name, key), {})
            for s, values in known.items():
                total[s] = total.get(s, 0) + values.sum(0)
            if self.per_module:
                self.rows.setdefault((name, key), []).append(known)

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


def _together(modules: Sequence[Statistics]) -> Statistics:
    """The statistics of several modules as those of a batch."""
    return {
        key: {name: torch.stack([one[key][name] for one in modules]) for name in sums}
        for key, sums in modules[0].items()
    }


def _order(item: tuple[tuple[str, FigureKey], object]) -> tuple[str, str, int]:
    (name, key), _ = item
    return name, key.side or "", key.rank or 0


def _at(values: list | None, place: tuple[int, ...]) -> float | None:
    if values is None:
        return None
    for i in place:
        values = values[i]
    return values if math.isfinite(values) else None  # type: ignore[arg-type, return-value]
