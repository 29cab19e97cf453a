"""How far two updates read from and write to the same directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from loraprobe.diagnostics._diagnostic import Figure, Key, Of, OfGrams, Statistics, Sums, per_pair
from loraprobe.lora.grams import GramMatrices, Side


@dataclass(frozen=True)
class SubspaceOverlap(OfGrams):
    """Mean squared cosine of the principal angles between the spaces of two updates, 0 to 1.

    Side "in": row spaces (what the updates read); side "out": column spaces (what they write).
    The spaces are the numerical ones of dW, k1 and k2 of dimension, so dead components and the
    basis in which A and B are stored do not matter. The whole adapters' is the overlap of the
    block-diagonal updates: modules weigh by min(k1, k2). Chance is that of random subspaces,
    max(k1, k2)/dim for one module. Adapters that were initialised from one seed overlap on the
    side "in" for that reason alone: see `shared_initialisation`.
    """

    formula: ClassVar[str] = "||Q1^T Q2||_F^2 / min(k1, k2)"
    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685, section 7.2"
    of: ClassVar[Of] = "pair"

    def observe(self, joint: GramMatrices) -> Statistics:
        return {Key(side="in"): self._side(joint, "in"), Key(side="out"): self._side(joint, "out")}

    def _side(self, joint: GramMatrices, side: Side) -> Sums:
        first, second = per_pair(joint.spectrum.rank.to(torch.float64))
        dim = joint.shape[..., 1 if side == "in" else 0].to(first)
        return {
            "shared": joint.overlap(side),
            "smaller": torch.minimum(first, second),
            "random": first * second / dim[:, :, None].clamp_min(1),
        }

    def figure(self, sums: Sums) -> Figure:
        return Figure(sums["shared"] / sums["smaller"], chance=sums["random"] / sums["smaller"])
