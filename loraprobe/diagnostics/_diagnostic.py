"""The contract of a diagnostic: additive statistics of each module, and a figure of their sums.

Statistics of a module are tensors [n] (one number per adapter) or [n, n] (one per pair) that are
summed over modules. The figure of a module comes from its own statistics, the figure of the whole
adapter from their sums, by the same formula. So the whole adapter is treated as one block-diagonal
update, a module that only one adapter adapts counts as a zero delta of the other, and one pass over
the files in bounded memory is enough for all diagnostics.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

from torch import Tensor

from loraprobe.base import Base
from loraprobe.errors import BaseError
from loraprobe.lora.grams import GramMatrices, Side, Updates
from loraprobe.registry import Registry

Sums = Mapping[str, Tensor]
Of = Literal["each", "pair", "both"]


class FigureKey(NamedTuple):
    """The name of one figure of a diagnostic that has several."""

    side: Side | None = None
    rank: int | None = None


Statistics = Mapping[FigureKey, Sums]


def single(**sums: Tensor) -> Statistics:
    """The statistics of a diagnostic that has one figure."""
    return {FigureKey(): sums}


class FigureValue(NamedTuple):
    """Values [..., n] or [..., n, n], their value by chance, and the standard error of a sample."""

    value: Tensor
    chance: Tensor | None = None
    stderr: Tensor | None = None


class Diagnostic(ABC):
    """One diagnostic; a frozen dataclass whose fields are its options.

    of: whether it measures each adapter, each pair, or both. basis_free: whether the same delta W
    stored in another basis (A -> G A, B -> B G^-1) gives the same figure. needs_base: whether it
    reads base weights. on_demand: whether it runs only if it is named.
    """

    formula: ClassVar[str]
    paper: ClassVar[str]
    of: ClassVar[Of]
    basis_free: ClassVar[bool] = True
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
    """The factors of one module, in the dtype of their files, and the base."""

    path: str
    updates: Updates
    base: Base | None = None

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
