"""What a lower rank would lose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from loraprobe.diagnostics._diagnostic import (
    Figure,
    Key,
    Of,
    OfGrams,
    Statistics,
    Sums,
    ranks_below,
)
from loraprobe.lora.grams import GramMatrices


@dataclass(frozen=True)
class TruncationError(OfGrams):
    """Relative error of the best approximation of each module at rank 1, 2, 4 ... r.

    Of one adapter: of its own update. Of a pair: of the exact mean of both, that is what a merge
    written at that rank loses; r is the largest rank among all adapters.
    """

    formula: ClassVar[str] = "sqrt(sum_{k > rank} sigma_k^2) / ||dW||"
    paper: ClassVar[str] = "Eckart & Young 1936"
    of: ClassVar[Of] = "both"

    def observe(self, joint: GramMatrices) -> Statistics:
        m, n, r = joint.grams_in.shape[:3]
        own, (i, j) = torch.arange(n), torch.triu_indices(n, n, 1)
        single = joint.spectrum.S.square()
        both = joint.sum_energies(i, j)

        def beyond(rank: int) -> Tensor:
            lost = torch.zeros(m, n, n, dtype=torch.float64)
            lost[:, own, own] = single[..., rank:].sum(-1)
            lost[:, i, j] = both[..., rank:].sum(-1)
            return lost

        total = beyond(0)
        return {Key(rank=rank): {"lost": beyond(rank), "total": total} for rank in ranks_below(r)}

    def figure(self, sums: Sums) -> Figure:
        return Figure((sums["lost"] / sums["total"]).sqrt())
