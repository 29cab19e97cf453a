"""Cosine of two updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from loraprobe.diagnostics._diagnostic import (
    Figure,
    GramDiagnostic,
    Key,
    Of,
    Statistics,
    Sums,
    outer,
    per_pair,
)
from loraprobe.lora.grams import GramMatrices


@dataclass(frozen=True)
class Cosine(GramDiagnostic):
    """<dW1, dW2> / (||dW1|| ||dW2||), of the whole adapters from sums over all modules.

    At 0 the updates are orthogonal; below 0 each cancels part of the other. Chance is the root mean
    square of the cosine after independent random rotations of each module's inputs and outputs:
    1 / sqrt(out in) for one module.
    """

    formula: ClassVar[str] = "sum_m <dW1_m, dW2_m> / (||dW1|| ||dW2||)"
    paper: ClassVar[str] = "Ilharco et al. 2023, arXiv:2212.04089"
    of: ClassVar[Of] = "pair"

    def observe(self, grams: GramMatrices) -> Statistics:
        first, second = per_pair(grams.square)
        entries = outer(grams.shape.prod(-1).to(first)).sqrt().clamp_min(1)
        return {
            Key(): {
                "inner": grams.inner,
                "first": first,
                "second": second,
                "random": first * second / entries,
            }
        }

    def figure(self, sums: Sums) -> Figure:
        norms = (sums["first"] * sums["second"]).sqrt()
        return Figure(sums["inner"] / norms, chance=sums["random"].sqrt() / norms)
