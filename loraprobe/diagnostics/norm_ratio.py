"""The ratio of the norms of two adapters."""

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
from loraprobe.lora.grams import GramMatrices


@dataclass(frozen=True)
class NormRatio(GramDiagnostic):
    """Larger norm over smaller norm, at least 1.

    An average of adapters of unequal norms is dominated by the larger one, which hurts merging.
    None where one of the norms is zero.
    """

    formula: ClassVar[str] = "max(||dW1||, ||dW2||) / min(||dW1||, ||dW2||)"
    paper: ClassVar[str] = "arXiv:2508.01148"
    of: ClassVar[Of] = "pair"

    def observe(self, grams: GramMatrices) -> Statistics:
        first, second = per_pair(grams.square)
        return {Key(): {"first": first, "second": second}}

    def figure(self, sums: Sums) -> Figure:
        larger = torch.maximum(sums["first"], sums["second"])
        return Figure((larger / torch.minimum(sums["first"], sums["second"])).sqrt())
