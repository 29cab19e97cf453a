"""How many directions an update really uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from loraprobe.diagnostics._diagnostic import Figure, Key, Of, OfGrams, Statistics, Sums
from loraprobe.lora.grams import GramMatrices


@dataclass(frozen=True)
class StableRank(OfGrams):
    """sum(sigma^2) / sigma_1^2 of a module: 1 for one direction, r for r equal ones.

    The whole adapter's is the mean over modules weighted by ||dW||^2, that is by where the
    adapter puts its energy.
    """

    formula: ClassVar[str] = "||dW||_F^2 / sigma_1^2"
    paper: ClassVar[str] = "Rudelson & Vershynin 2007, arXiv:math/0503442"
    of: ClassVar[Of] = "each"

    def observe(self, joint: GramMatrices) -> Statistics:
        largest = joint.spectrum.S[..., 0].square()
        weighted = (joint.square.square() / largest).where(largest > 0, largest)
        return {Key(): {"weighted": weighted, "square": joint.square}}

    def figure(self, sums: Sums) -> Figure:
        return Figure(sums["weighted"] / sums["square"])
