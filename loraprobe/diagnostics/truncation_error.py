"""What a lower rank would lose."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from loraprobe.diagnostics._contract import Figure, Key, Of, OfGrams, Statistics, Sums, ranks_below
from loraprobe.joint import Joint


@dataclass(frozen=True)
class TruncationError(OfGrams):
    """Relative error of the best approximation of each module at rank 1, 2, 4 ... r.

    Of one adapter: of its own update. Of a pair: of the exact mean of both, that is what a merge
    written at that rank loses; r is the largest rank among all adapters.
    """

    formula: ClassVar[str] = "sqrt(sum_{k > rank} sigma_k^2) / ||dW||"
    paper: ClassVar[str] = "Eckart & Young 1936"
    of: ClassVar[Of] = "both"

    def observe(self, joint: Joint) -> Statistics:
        m, n, r = joint.grams_in.shape[:3]
        ranks = ranks_below(r)
        lost = {rank: torch.zeros(m, n, n, dtype=torch.float64) for rank in ranks}
        total = torch.zeros(m, n, n, dtype=torch.float64)
        for i in range(n):
            for j in range(i, n):
                energy = (joint.spectrum.S[:, i] if i == j else joint.sum_spectrum([i, j])).square()
                total[:, i, j] = energy.sum(-1)
                for rank, tail in zip(ranks, _tails(energy, ranks), strict=True):
                    lost[rank][:, i, j] = tail
        return {Key(rank=rank): {"lost": lost[rank], "total": total} for rank in ranks}

    def figure(self, sums: Sums) -> Figure:
        return Figure((sums["lost"] / sums["total"]).sqrt())


def _tails(energy: Tensor, ranks: list[int]) -> list[Tensor]:
    """What lies beyond each rank: [m] each."""
    return [energy[:, rank:].sum(-1) for rank in ranks]
