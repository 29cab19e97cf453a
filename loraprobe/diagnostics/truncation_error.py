"""The loss of a lower rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from loraprobe.diagnostics._diagnostic import (
    Figure,
    GramDiagnostic,
    Key,
    Of,
    Statistics,
    Sums,
    ranks_below,
)
from loraprobe.lora.grams import GramMatrices


@dataclass(frozen=True)
class TruncationError(GramDiagnostic):
    """Relative error of the best approximation of each module at rank 1, 2, 4 ... r.

    For one adapter, of its own update. For a pair, of the exact mean of both, which is what a merge
    written at that rank loses. r is the largest rank of all adapters.
    """

    formula: ClassVar[str] = "sqrt(sum_{k > rank} sigma_k^2) / ||dW||"
    paper: ClassVar[str] = "Eckart & Young 1936"
    of: ClassVar[Of] = "both"

    def observe(self, grams: GramMatrices) -> Statistics:
        m, n, r = grams.grams_in.shape[:3]
        own, (i, j) = torch.arange(n), torch.triu_indices(n, n, 1)
        single = grams.spectrum.S.square()
        both = grams.sum_energies(i, j)

        def beyond(rank: int) -> Tensor:
            lost = torch.zeros(m, n, n, dtype=torch.float64)
            lost[:, own, own] = single[..., rank:].sum(-1)
            lost[:, i, j] = both[..., rank:].sum(-1)
            return lost

        total = beyond(0)
        return {Key(rank=rank): {"lost": beyond(rank), "total": total} for rank in ranks_below(r)}

    def figure(self, sums: Sums) -> Figure:
        return Figure((sums["lost"] / sums["total"]).sqrt())
