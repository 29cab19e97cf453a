"""Stored components without any effect."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from loraprobe.diagnostics._diagnostic import Figure, GramDiagnostic, Key, Of, Statistics, Sums
from loraprobe.lora.grams import GramMatrices


@dataclass(frozen=True)
class DeadRank(GramDiagnostic):
    """Stored rank minus the numerical rank of dW; the whole adapter's is the sum over modules.

    A singular value counts if it exceeds 1e-6 of the module's largest. So components that depend on
    each other are found too, in any basis. Rounding to bf16 hides these: there only components that
    are zero are found.
    """

    formula: ClassVar[str] = "r - #{sigma_k > 1e-6 sigma_1}"
    paper: ClassVar[str] = "-"
    of: ClassVar[Of] = "each"

    def observe(self, grams: GramMatrices) -> Statistics:
        return {Key(): {"dead": (grams.rank - grams.spectrum.rank).to(torch.float64)}}

    def figure(self, sums: Sums) -> Figure:
        return Figure(sums["dead"])
