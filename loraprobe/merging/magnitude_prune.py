"""magnitude_prune: keep the largest entries, sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from loraprobe.merging._method import Deltas, Matrix, Weights, weighted_sum
from loraprobe.merging._sparse import SparseMethod, keep_largest


@dataclass(frozen=True)
class MagnitudePrune(SparseMethod):
    """Keep the largest entries of each delta, not rescaled, and take the weighted sum.

    `density` is the share that is kept; weights are 1/n if none are given.
    """

    formula: ClassVar[str] = "dW = sum_i w_i trim(dW_i)"
    paper: ClassVar[str] = "Han et al. 2015, Learning weights and connections (arXiv 1506.02626)"

    def __call__(
        self, deltas: Deltas, weights: Weights, generators: Sequence[torch.Generator] = ()
    ) -> Matrix:
        return weighted_sum(keep_largest(deltas, self.density), weights)
