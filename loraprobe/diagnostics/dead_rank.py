"""Stored components that carry nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from loraprobe.diagnostics._diagnostic import Figure, Key, Of, OfGrams, Statistics, Sums
from loraprobe.lora.grams import GramMatrices


@dataclass(frozen=True)
class DeadRank(OfGrams):
    """Stored rank minus the numerical rank of dW; the whole adapter's is the sum over modules.

    A singular value counts as alive if it exceeds 1e-6 of the module's largest, so also rank
    that is lost because components repeat each other is found, in any basis. Rounding to bf16
    hides repeated components: there only components that are zero are dead.
    """

    formula: ClassVar[str] = "r - #{sigma_k > 1e-6 sigma_1}"
    paper: ClassVar[str] = "-"
    of: ClassVar[Of] = "each"

    def observe(self, joint: GramMatrices) -> Statistics:
        return {Key(): {"dead": (joint.rank - joint.spectrum.rank).to(torch.float64)}}

    def figure(self, sums: Sums) -> Figure:
        return Figure(sums["dead"])
