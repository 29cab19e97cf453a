"""Diagnostics from norms and inner products of updates."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from loraprobe.diagnostics._diagnostic import (
    FigureValue,
    GramDiagnostic,
    Statistics,
    Sums,
    per_pair,
    single,
)
from loraprobe.lora.grams import GramMatrices


@dataclass(frozen=True)
class Norm(GramDiagnostic):
    """How much an adapter changes: ||dW||_F of a module, sqrt(sum ||dW||_F^2) of the whole."""

    formula = "||dW||_F = s sqrt(sum((B^T B) * (A A^T)))"
    paper = "-"
    of = "each"

    def observe(self, grams: GramMatrices) -> Statistics:
        return single(square=grams.square)

    def figure(self, sums: Sums) -> FigureValue:
        return FigureValue(sums["square"].sqrt())


@dataclass(frozen=True)
class NormRatio(GramDiagnostic):
    """Larger norm over smaller norm, at least 1.

    An average of adapters of unequal norms is dominated by the larger one, which hurts merging.
    None where one of the norms is zero.
    """

    formula = "max(||dW1||, ||dW2||) / min(||dW1||, ||dW2||)"
    paper = "arXiv:2508.01148"
    of = "pair"

    def observe(self, grams: GramMatrices) -> Statistics:
        first, second = per_pair(grams.square)
        return single(first=first, second=second)

    def figure(self, sums: Sums) -> FigureValue:
        larger = torch.maximum(sums["first"], sums["second"])
        return FigureValue((larger / torch.minimum(sums["first"], sums["second"])).sqrt())


@dataclass(frozen=True)
class Cosine(GramDiagnostic):
    """<dW1, dW2> / (||dW1|| ||dW2||), of the whole adapters from sums over all modules.

    At 0 the updates are orthogonal; below 0 each cancels part of the other. Chance is the root mean
    square of the cosine after independent random rotations of each module's inputs and outputs:
    1 / sqrt(out in) for one module.
    """

    formula = "sum_m <dW1_m, dW2_m> / (||dW1|| ||dW2||)"
    paper = "Ilharco et al. 2023, arXiv:2212.04089"
    of = "pair"

    def observe(self, grams: GramMatrices) -> Statistics:
        first, second = per_pair(grams.square)
        sizes, other = per_pair(grams.shape.prod(-1).to(first))
        entries = (sizes * other).sqrt().clamp_min(1)
        return single(
            inner=grams.inner,
            first=first,
            second=second,
            random=first * second / entries,
        )

    def figure(self, sums: Sums) -> FigureValue:
        norms = (sums["first"] * sums["second"]).sqrt()
        return FigureValue(sums["inner"] / norms, chance=sums["random"].sqrt() / norms)


@dataclass(frozen=True)
class EnergyRatio(GramDiagnostic):
    """||dW1 + dW2||^2 / (||dW1||^2 + ||dW2||^2), between 0 and 2.

    1 for orthogonal updates (chance); below 1 they partly cancel, above 1 they add up.
    """

    formula = "||dW1 + dW2||^2 / (||dW1||^2 + ||dW2||^2)"
    paper = "-"
    of = "pair"

    def observe(self, grams: GramMatrices) -> Statistics:
        first, second = per_pair(grams.square)
        return single(inner=grams.inner, apart=first + second)

    def figure(self, sums: Sums) -> FigureValue:
        value = 1 + 2 * sums["inner"] / sums["apart"]
        return FigureValue(value, chance=torch.ones_like(value))
