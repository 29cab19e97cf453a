"""What a diagnostic is: additive statistics of each module, and a figure made of their sums.

Statistics of a module are tensors [n] (one number an adapter) or [n, n] (one a pair) that add up
over modules; the figure of a module is made of its own statistics, the figure of the whole
adapter of their sums, by the same formula. So the whole is treated as one block-diagonal update,
a module that only one adapter touches counts as a zero delta of the other, and one pass over the
files in bounded memory serves everything.
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


class Key(NamedTuple):
    """Which figure of a diagnostic, where it has several."""

    side: Side | None = None
    rank: int | None = None


Statistics = Mapping[Key, Sums]


class Figure(NamedTuple):
    """Values [..., n] or [..., n, n], what chance gives, and the standard error of a sample."""

    value: Tensor
    chance: Tensor | None = None
    stderr: Tensor | None = None


class Diagnostic(ABC):
    """One diagnostic; a frozen dataclass whose fields are its options.

    `of` says whether it is about each adapter, each pair, or both; `basis_free` whether the same
    delta W stored in another basis (A -> G A, B -> B G^-1) gives the same figure.
    """

    formula: ClassVar[str]
    paper: ClassVar[str]
    of: ClassVar[Of]
    basis_free: ClassVar[bool] = True
    needs_base: ClassVar[bool] = False
    on_demand: ClassVar[bool] = False

    @abstractmethod
    def figure(self, sums: Sums) -> Figure:
        """The figure from statistics, elementwise; 0/0 may be NaN, which becomes None."""


class OfGrams(Diagnostic):
    """A diagnostic that needs the Gram matrices alone."""

    @abstractmethod
    def observe(self, joint: GramMatrices) -> Statistics:
        """Statistics of a batch of modules: [m, n] or [m, n, n] each."""


@dataclass(frozen=True)
class Module:
    """One module's factors (float64, views that the next module overwrites) and its base."""

    path: str
    updates: Updates
    base: Base | None = None


class OfFactors(Diagnostic):
    """A diagnostic that needs the factors themselves, or the base's weight."""

    @abstractmethod
    def observe(self, module: Module) -> Statistics:
        """Statistics of one module: [n] or [n, n] each."""


def ranks_below(largest: int) -> list[int]:
    """1, 2, 4 ... and the largest itself."""
    return sorted({1 << k for k in range(largest.bit_length()) if 1 << k <= largest} | {largest})


def outer(values: Tensor) -> Tensor:
    """Products of all pairs: [..., n] -> [..., n, n]."""
    return values[..., :, None] * values[..., None, :]


def per_pair(values: Tensor) -> tuple[Tensor, Tensor]:
    """The same values as those of the first and of the second of each pair: [..., n, n] each."""
    n = values.shape[-1]
    first = values[..., :, None].expand(*values.shape, n)
    return first, first.mT


def base_weight(module: Module) -> Tensor | None:
    """The base's weight of a module, [out, in] float32; None where the base has none that fits.

    What does not fit is for `compatibility` to say; a figure that needs it is None.
    """
    if module.base is None:
        return None
    try:
        return module.base.weight(module.path)
    except BaseError:
        return None


DIAGNOSTICS: Registry[Diagnostic] = Registry("loraprobe.diagnostics", Diagnostic, "diagnostic")  # type: ignore[type-abstract]
