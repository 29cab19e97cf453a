"""The contract of a diagnostic, and one pass over the modules of all adapters for all diagnostics.

A diagnostic is additive statistics of each module, and a figure of their sums.

Statistics of a module are tensors [n] (one number per adapter) or [n, n] (one per pair) that are
summed over modules. The figure of a module comes from its own statistics, the figure of the whole
adapter from their sums, by the same formula. So the whole adapter is treated as one block-diagonal
update, a module that only one adapter adapts counts as a zero delta of the other, and one pass over
the files in bounded memory is enough for all diagnostics.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from loraprobe.adapters import Adapter, natural
from loraprobe.base import Base
from loraprobe.errors import BaseError, UsageError
from loraprobe.lora.grams import GramMatrices, Side, Updates, gram_matrices
from loraprobe.records import Measurement, Progress
from loraprobe.registry import Registry, name_of

Sums = Mapping[str, Tensor]
Of = Literal["each", "pair", "both"]


class FigureKey(NamedTuple):
    """The name of one figure of a diagnostic that has several."""

    side: Side | None = None
    rank: int | None = None


Statistics = Mapping[FigureKey, Sums]


def one_figure(**sums: Tensor) -> Statistics:
    """The statistics of a diagnostic that has one figure."""
    return {FigureKey(): sums}


class FigureValue(NamedTuple):
    """Values [..., n] or [..., n, n], their value by chance, and the standard error of a sample."""

    value: Tensor
    chance: Tensor | None = None
    stderr: Tensor | None = None


class Diagnostic(ABC):
    """One diagnostic; a frozen dataclass whose fields are its options.

    of: whether it measures each adapter, each pair, or both. needs_base: whether it reads base
    weights. on_demand: whether it runs only if it is named.
    """

    formula: ClassVar[str]
    paper: ClassVar[str]
    of: ClassVar[Of]
    needs_base: ClassVar[bool] = False
    on_demand: ClassVar[bool] = False

    @abstractmethod
    def figure(self, sums: Sums) -> FigureValue:
        """The figure from statistics, elementwise; NaN (from 0/0) is reported as None."""


class GramDiagnostic(Diagnostic):
    """A diagnostic that is computed from Gram matrices."""

    @abstractmethod
    def observe(self, grams: GramMatrices) -> Statistics:
        """Statistics of a batch of modules: [m, n] or [m, n, n] each."""


@dataclass(frozen=True)
class Module:
    """The factors of one module, in the dtype of their files, the base, and the seed of samples."""

    path: str
    updates: Updates
    base: Base | None = None
    seed: int = 0

    def base_weight(self) -> Tensor | None:
        """The base's weight, [out, in] float32; None where the base has none that fits.

        `compatibility` reports a base that does not fit; the figure is None here.
        """
        if self.base is None:
            return None
        try:
            return self.base.weight(self.path)
        except BaseError:
            return None


class FactorDiagnostic(Diagnostic):
    """A diagnostic that is computed from the factors, or from the base's weight."""

    @abstractmethod
    def observe(self, module: Module) -> Statistics:
        """Statistics of one module: [n] or [n, n] each."""


def per_pair(values: Tensor) -> tuple[Tensor, Tensor]:
    """The values of the first and of the second adapter of each pair: [..., n, n] each."""
    n = values.shape[-1]
    first = values[..., :, None].expand(*values.shape, n)
    return first, first.mT


DIAGNOSTICS: Registry[Diagnostic] = Registry("loraprobe.diagnostics", Diagnostic, "diagnostic")  # type: ignore[type-abstract]

# Diagnostic and figure -> statistics, of each module of a batch or summed over modules.
NamedSums = dict[tuple[str, FigureKey], dict[str, Tensor]]


def diagnose(
    adapters: Sequence[Adapter],
    *,
    observe: Callable[[GramMatrices], None] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> tuple[Measurement, ...]:
    """Diagnostics of all adapters and pairs: first of whole adapters, then of each module.

    observe: called with each batch of modules, so that `compatibility` does not have to read the
    files again. options: those of `Diagnosis`, which raises UsageError.
    """
    diagnosis = Diagnosis(adapters, **options)
    for grams in gram_matrices(
        [a.modules for a in adapters],
        sorted({path for a in adapters for path in a.layout}, key=natural),
        rank=max((a.rank_range[1] for a in adapters), default=0),
        visitor=diagnosis.visit,
        progress=None if progress is None else lambda done, all: progress("diagnose", done, all),
    ):
        if observe is not None:
            observe(grams)
        diagnosis.take(grams.paths)
    return diagnosis.measurements()


class Diagnosis:
    """Diagnostics of adapters, to which the modules are shown in batches.

    per_module: whether modules are reported too, each for the adapters that adapt it, and for the
    pairs of which both do. only: the names of the diagnostics to run, instead of all. on_demand:
    names to add, also with options ("intruder_dimensions:k=5"). Diagnostics that need base weights
    run if `base` is given. A figure that does not exist (0/0, a NaN in the file, shapes that
    differ) has the value None.

    Raises UsageError for an unknown name, or one that needs a base when there is none.
    """

    def __init__(
        self,
        adapters: Sequence[Adapter],
        *,
        per_module: bool = False,
        base: Base | None = None,
        only: Collection[str] | None = None,
        on_demand: Collection[str] = (),
        seed: int = 0,
    ) -> None:
        self.adapters, self.per_module, self.base, self.seed = adapters, per_module, base, seed
        usual = [
            c for c in DIAGNOSTICS if not c.on_demand and (base is not None or not c.needs_base)
        ]
        self.chosen: dict[str, Diagnostic] = {}
        for spec in [*(map(name_of, usual) if only is None else only), *on_demand]:
            diagnostic = DIAGNOSTICS.make(spec)
            name = name_of(diagnostic)
            if diagnostic.needs_base and base is None:
                raise UsageError(
                    f"{name} compares with the base's weights; give the base model with --base."
                )
            if diagnostic.of != "pair" or len(adapters) > 1:
                self.chosen[name] = diagnostic
        # Of the modules that were shown and not yet taken: statistics, which adapters have them.
        self.shown: dict[tuple[str, ...], tuple[NamedSums, list[list[bool]]]] = {}
        self.totals: NamedSums = {}
        self.rows: dict[tuple[str, FigureKey], list[dict[str, Tensor]]] = {}
        self.present: dict[str, list[bool]] = {}

    def visit(self, grams: GramMatrices, updates: Sequence[Updates]) -> None:
        """Computes the statistics of a batch of modules; several threads may call it at a time."""
        shown = zip(grams.paths, updates, strict=True)
        modules = [Module(*one, self.base, self.seed) for one in shown]
        sums = _statistics(self.chosen, grams, modules)
        self.shown[grams.paths] = sums, grams.present.tolist()

    def take(self, paths: tuple[str, ...]) -> None:
        """Adds the statistics of a batch that was shown, which frees their memory."""
        named_sums, present = self.shown.pop(paths)
        for named, sums in named_sums.items():
            total = self.totals.setdefault(named, {})
            for s, values in sums.items():
                total[s] = total.get(s, 0) + values.sum(0)
            if self.per_module:
                self.rows.setdefault(named, []).append(sums)
        self.present.update(zip(paths, present, strict=True))

    def measurements(self) -> tuple[Measurement, ...]:
        """The figures of all modules that were shown: of whole adapters, then of each module."""
        for paths in sorted(self.shown, key=lambda paths: natural(paths[0])):
            self.take(paths)
        measurements: list[Measurement] = []
        for (name, key), sums in sorted(self.totals.items(), key=_order):
            figure = self.chosen[name].figure(sums)
            measurements += _measurements(self.chosen[name], key, figure, self.adapters)
        for (name, key), parts in sorted(self.rows.items(), key=_order):
            joined = {s: torch.cat([part[s] for part in parts]) for s in parts[0]}
            figure = self.chosen[name].figure(joined)
            for m, (path, present) in enumerate(self.present.items()):
                of_module = FigureValue(*(None if part is None else part[m] for part in figure))  # type: ignore[arg-type]
                measurements += _measurements(
                    self.chosen[name], key, of_module, self.adapters, path, present
                )
        return tuple(measurements)


def _statistics(
    diagnostics: Mapping[str, Diagnostic], grams: GramMatrices, modules: Sequence[Module]
) -> NamedSums:
    """What all diagnostics observe of one batch of modules; called in several threads.

    NaN for what is not finite, and for pairs of unequal shapes.
    """
    fine = grams.finite
    pair = fine[:, :, None] & fine[:, None, :] & grams.comparable
    named_sums: NamedSums = {}
    for name, diagnostic in diagnostics.items():
        if isinstance(diagnostic, GramDiagnostic):
            statistics: Statistics = diagnostic.observe(grams)
        else:
            assert isinstance(diagnostic, FactorDiagnostic)
            each = [diagnostic.observe(module) for module in modules]
            statistics = {
                key: {s: torch.stack([one[key][s] for one in each]) for s in sums}
                for key, sums in each[0].items()
            }
        for key, sums in statistics.items():
            named_sums[name, key] = {
                s: values.masked_fill(~(fine if values.ndim == 2 else pair), torch.nan)
                for s, values in sums.items()
            }
    return named_sums


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
    name = name_of(diagnostic)
    for names, place in _places(diagnostic, adapters):
        if present is None or all(present[i] for i in place):
            yield Measurement(
                name=name,
                adapters=names,
                value=_at(values, place),
                module=module,
                side=key.side,
                chance=_at(chances, place),
                stderr=_at(errors, place),
                rank=key.rank,
            )


def _places(
    diagnostic: Diagnostic, adapters: Sequence[Adapter]
) -> Iterator[tuple[tuple[str, ...], tuple[int, ...]]]:
    """The names of each adapter or pair, and its index in the figure's tensor."""
    names = [adapter.name for adapter in adapters]
    for i, name in enumerate(names):
        if diagnostic.of == "each":
            yield (name,), (i,)
            continue
        if diagnostic.of == "both":
            yield (name,), (i, i)
        for j in range(i + 1, len(names)):
            yield (name, names[j]), (i, j)


def _order(item: tuple[tuple[str, FigureKey], object]) -> tuple[str, str, int]:
    (name, key), _ = item
    return name, key.side or "", key.rank or 0


def _at(values: list | None, place: tuple[int, ...]) -> float | None:
    if values is None:
        return None
    for i in place:
        values = values[i]
    return values if math.isfinite(values) else None  # type: ignore[arg-type, return-value]
