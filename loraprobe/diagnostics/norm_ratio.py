"""How unequal two adapters are in size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from loraprobe.diagnostics._diagnostic import Figure, Key, Of, OfGrams, Statistics, Sums, per_pair
from loraprobe.lora.grams import GramMatrices


@dataclass(frozen=True)
class NormRatio(OfGrams):
    """Larger norm over smaller norm, at least 1.

    In an average of unequal adapters the larger one decides; norm disparity hurts merging.
    None where one of them is zero.
    """

    formula: ClassVar[str] = "max(||dW1||, ||dW2||) / min(||dW1||, ||dW2||)"
    paper: ClassVar[str] = "arXiv:2508.01148"
    of: ClassVar[Of] = "pair"

    def observe(self, joint: GramMatrices) -> Statistics:
        first, second = per_pair(joint.square)
        return {Key(): {"first": first, "second": second}}

    def figure(self, sums: Sums) -> Figure:
        larger = torch.maximum(sums["first"], sums["second"])
        return Figure((larger / torch.minimum(sums["first"], sums["second"])).sqrt())
