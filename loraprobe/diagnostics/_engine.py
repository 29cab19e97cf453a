"""diagnose: all diagnostics in one pass over the modules of all adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from loraprobe.adapters import Adapter, natural
from loraprobe.base import Base
from loraprobe.diagnostics._diagnostic import (
    DIAGNOSTICS,
    Diagnostic,
    FactorDiagnostic,
    FigureKey,
    GramDiagnostic,
    Module,
    Statistics,
)
from loraprobe.diagnostics._figures import BatchStatistics, Named, figures_of
from loraprobe.errors import UsageError
from loraprobe.lora import gram_batches
from loraprobe.lora.gram_batches import Updates
from loraprobe.lora.grams import GramMatrices
from loraprobe.records import Measurement, Progress
from loraprobe.registry import name_of

D = TypeVar("D", bound=Diagnostic)


def diagnose(adapters: Sequence[Adapter], **chosen: Any) -> tuple[Measurement, ...]:
    """Diagnostics of all adapters and pairs: first of whole adapters, then of each module.

    chosen: which ones, as for `plan`, whose errors are raised.
    """
    made = plan(adapters, **chosen)
    return made.measurements(made.observe(made.batches))


def plan(
    adapters: Sequence[Adapter],
    *,
    per_module: bool = False,
    base: Base | None = None,
    only: Collection[str] | None = None,
    on_demand: Collection[str] = (),
    seed: int = 0,
) -> Plan:
    """The plan of `diagnose`, whose batches of modules may be observed by several processes.

    only: the names of the diagnostics to run, instead of all. on_demand: names to add, also with
    options ("intruder_dimensions:k=5"). Diagnostics that need base weights run if `base` is given.
    A module is reported for the adapters that adapt it, and for
    the pairs of which both do. A figure that does not exist (0/0, a NaN in the file, shapes that
    differ) has the value None.

    Raises UsageError for an unknown name, or one that needs a base when there is none.
    """
    chosen = choose(base is not None, only, on_demand)
    chosen = [_with(d, seed=seed) for d in chosen if d.of != "pair" or adapters[1:]]
    return Plan(adapters, chosen, base, per_module)


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
    """The diagnostic with the caller's `seed` in place of its default."""
    given = {
        f.name: options[f.name]
        for f in dataclasses.fields(diagnostic)  # type: ignore[arg-type]
        if f.name in options and getattr(diagnostic, f.name) == f.default
    }
    return dataclasses.replace(diagnostic, **given)  # type: ignore[type-var]


@dataclass(frozen=True)
class Plan:
    """Which diagnostics run on which adapters. Statistics are summed batch by batch, in order."""

    adapters: Sequence[Adapter]
    diagnostics: Sequence[Diagnostic]
    base: Base | None = None
    per_module: bool = False

    @property
    def paths(self) -> list[str]:
        """The modules of all adapters, in their order."""
        return sorted({path for a in self.adapters for path in a.layout}, key=natural)

    @property
    def rank(self) -> int:
        return max((a.rank_range[1] for a in self.adapters), default=0)

    @property
    def batches(self) -> list[tuple[str, ...]]:
        """The modules of each batch: the smallest parts of the work."""
        return gram_batches.batches_of([a.layout for a in self.adapters], self.paths, self.rank)

    def observe(
        self, batches: Sequence[Sequence[str]], progress: Progress | None = None
    ) -> Iterator[BatchStatistics]:
        """The statistics of batches of modules, from one pass over their factors."""
        found: dict[tuple[str, ...], BatchStatistics] = {}

        def visit(grams: GramMatrices, updates: Sequence[Updates]) -> None:
            found[grams.paths] = self._statistics(grams, self._observed(grams, updates))

        report = None if progress is None else lambda done, all: progress("diagnose", done, all)
        for grams in gram_batches.gram_matrices(
            [a.modules for a in self.adapters],
            rank=self.rank,
            batches=batches,
            visitor=visit,
            progress=report,
        ):
            yield found.pop(grams.paths)

    def _observed(self, grams: GramMatrices, updates: Sequence[Updates]) -> Named:
        """What all diagnostics observe of one batch of modules; called in several threads."""
        modules = [Module(*one, self.base) for one in zip(grams.paths, updates, strict=True)]
        found: dict[tuple[str, FigureKey], Mapping[str, Tensor]] = {}
        for diagnostic in self.diagnostics:
            if isinstance(diagnostic, GramDiagnostic):
                statistics = diagnostic.observe(grams)
            elif isinstance(diagnostic, FactorDiagnostic):
                statistics = _together([diagnostic.observe(module) for module in modules])
            found |= {(name_of(diagnostic), key): sums for key, sums in statistics.items()}
        return found

    def _statistics(self, grams: GramMatrices, found: Named) -> BatchStatistics:
        """The statistics with NaN for what is not finite, and for pairs of unequal shapes."""
        fine = grams.finite
        pair = fine[:, :, None] & fine[:, None, :] & grams.comparable
        known = {
            key: {
                s: values.masked_fill(~(fine if values.ndim == 2 else pair), torch.nan)
                for s, values in sums.items()
            }
            for key, sums in found.items()
        }
        return BatchStatistics(
            grams.paths,
            grams.present,
            fine,
            grams.inner,
            {key: {s: v.sum(0) for s, v in sums.items()} for key, sums in known.items()},
            known if self.per_module else {},
        )

    def measurements(
        self,
        batches: Iterable[BatchStatistics],
        observers: Sequence[Callable[[BatchStatistics], None]] = (),
    ) -> tuple[Measurement, ...]:
        """The figures of whole adapters, then of modules; diagnostics in the order of their names.

        batches: the statistics of all batches, in their order. observers: called with each, so that
        `compatibility` does not have to read the files again.
        """

        def seen() -> Iterator[BatchStatistics]:
            for batch in batches:
                for observer in observers:
                    observer(batch)
                yield batch

        return tuple(figures_of(self.diagnostics, self.adapters, seen()))


def _together(modules: Sequence[Statistics]) -> Statistics:
    """The statistics of several modules as those of a batch."""
    return {
        key: {name: torch.stack([one[key][name] for one in modules]) for name in sums}
        for key, sums in modules[0].items()
    }
