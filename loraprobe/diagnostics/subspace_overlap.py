"""The overlap of the row spaces and of the column spaces of two updates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from loraprobe.diagnostics._diagnostic import (
    Figure,
    GramDiagnostic,
    Key,
    Of,
    Statistics,
    Sums,
    per_pair,
)
from loraprobe.lora.grams import GramMatrices, Side


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

    formula: ClassVar[str] = "||Q1^T Q2||_F^2 / min(k1, k2)"
    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685, section 7.2"
    of: ClassVar[Of] = "pair"

    def observe(self, grams: GramMatrices) -> Statistics:
        return {Key(side="in"): self._side(grams, "in"), Key(side="out"): self._side(grams, "out")}

    def _side(self, grams: GramMatrices, side: Side) -> Sums:
        first, second = per_pair(grams.spectrum.rank.to(torch.float64))
        dim = grams.shape[..., 1 if side == "in" else 0].to(first)
        return {
            "shared": grams.overlap(side),
            "smaller": torch.minimum(first, second),
            "random": first * second / dim[:, :, None].clamp_min(1),
        }

    def figure(self, sums: Sums) -> Figure:
        return Figure(sums["shared"] / sums["smaller"], chance=sums["random"] / sums["smaller"])
