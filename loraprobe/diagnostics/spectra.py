"""Diagnostics from the singular values and singular vectors of updates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraprobe.diagnostics._diagnostic import (
    FigureKey,
    FigureValue,
    GramDiagnostic,
    Statistics,
    Sums,
    one_figure,
    per_pair,
)
from loraprobe.lora.grams import GramMatrices, Side


@dataclass(frozen=True)
class StableRank(GramDiagnostic):
    """sum(sigma^2) / sigma_1^2 of a module: 1 for one direction, r for r equal ones.

    The value of a whole adapter is the mean over modules weighted by ||dW||^2, their energy.
    """

    formula = "||dW||_F^2 / sigma_1^2"
    paper = "Rudelson & Vershynin 2007, arXiv:math/0503442"
    of = "each"

    def observe(self, grams: GramMatrices) -> Statistics:
        largest = grams.spectrum.S[..., 0].square()
        weighted = (grams.square.square() / largest).where(largest > 0, largest)
        return one_figure(weighted=weighted, square=grams.square)

    def figure(self, sums: Sums) -> FigureValue:
        return FigureValue(sums["weighted"] / sums["square"])


@dataclass(frozen=True)
class DeadRank(GramDiagnostic):
    """Stored rank minus the numerical rank of dW; the whole adapter's is the sum over modules.

    A singular value counts if it exceeds 1e-6 of the module's largest. So components that depend on
    each other are found too, in any basis. Rounding to bf16 hides these: there only components that
    are zero are found.
    """

    formula = "r - #{sigma_k > 1e-6 sigma_1}"
    paper = "-"
    of = "each"

    def observe(self, grams: GramMatrices) -> Statistics:
        return one_figure(dead=(grams.rank - grams.spectrum.rank).to(torch.float64))

    def figure(self, sums: Sums) -> FigureValue:
        return FigureValue(sums["dead"])


@dataclass(frozen=True)
class TruncationError(GramDiagnostic):
    """Relative error of the best approximation of each module at rank 1, 2, 4 ... r.

    For one adapter, of its own update. For a pair, of the exact mean of both, which is what a merge
    written at that rank loses. r is the largest rank of all adapters.
    """

    formula = "sqrt(sum_{k > rank} sigma_k^2) / ||dW||"
    paper = "Eckart & Young 1936"
    of = "both"

    def observe(self, grams: GramMatrices) -> Statistics:
        m, n, r = grams.grams_in.shape[:3]
        diagonal, (i, j) = torch.arange(n), torch.triu_indices(n, n, 1)
        single = grams.spectrum.S.square()
        both = grams.sum_energies(i, j)

        def beyond(rank: int) -> Tensor:
            lost = torch.zeros(m, n, n, dtype=torch.float64)
            lost[:, diagonal, diagonal] = single[..., rank:].sum(-1)
            lost[:, i, j] = both[..., rank:].sum(-1)
            return lost

        total = beyond(0)
        ranks = sorted({r, *(1 << k for k in range(r.bit_length()))})
        return {FigureKey(rank=k): {"lost": beyond(k), "total": total} for k in ranks}

    def figure(self, sums: Sums) -> FigureValue:
        return FigureValue((sums["lost"] / sums["total"]).sqrt())


@dataclass(frozen=True)
class SubspaceOverlap(GramDiagnostic):
    """Mean squared cosine of the principal angles between the spaces of two updates, 0 to 1.

    Side "in": row spaces (what the updates read); side "out": column spaces (what they write).
    The spaces are those of dW up to its numerical rank, of dimensions k1 and k2, so dead components
    and the basis in which A and B are stored do not matter. The value of whole adapters is the
    overlap of the block-diagonal updates: modules count by min(k1, k2). Chance is the value for
    random subspaces, max(k1, k2)/dim for one module. Adapters that were initialised with one seed
    overlap on the side "in" for that reason alone: see `shared_initialisation`.
    """

    formula = "||Q1^T Q2||_F^2 / min(k1, k2)"
    paper = "Hu et al. 2021, arXiv:2106.09685, section 7.2"
    of = "pair"

    def observe(self, grams: GramMatrices) -> Statistics:
        first, second = per_pair(grams.spectrum.rank.to(torch.float64))
        sides: tuple[Side, Side] = ("out", "in")
        return {
            FigureKey(side=side): {
                "shared": grams.overlap(side),
                "smaller": torch.minimum(first, second),
                "random": first * second / dim.to(first)[:, :, None].clamp_min(1),
            }
            for side, dim in zip(sides, grams.shape.unbind(-1), strict=True)
        }

    def figure(self, sums: Sums) -> FigureValue:
        return FigureValue(
            sums["shared"] / sums["smaller"], chance=sums["random"] / sums["smaller"]
        )
