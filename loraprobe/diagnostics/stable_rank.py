"""The effective number of directions of an update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from loraprobe.diagnostics._diagnostic import Figure, GramDiagnostic, Key, Of, Statistics, Sums
from loraprobe.lora.grams import GramMatrices


@dataclass(frozen=True)
class StableRank(GramDiagnostic):
    """sum(sigma^2) / sigma_1^2 of a module: 1 for one direction, r for r equal ones.

    The value of a whole adapter is the mean over modules weighted by ||dW||^2, their energy.
    """

    formula: ClassVar[str] = "||dW||_F^2 / sigma_1^2"
    paper: ClassVar[str] = "Rudelson & Vershynin 2007, arXiv:math/0503442"
    of: ClassVar[Of] = "each"

    def observe(self, grams: GramMatrices) -> Statistics:
        largest = grams.spectrum.S[..., 0].square()
        weighted = (grams.square.square() / largest).where(largest > 0, largest)
        return {Key(): {"weighted": weighted, "square": grams.square}}

    def figure(self, sums: Sums) -> Figure:
        return Figure(sums["weighted"] / sums["square"])
