"""magnitude_prune: keep the largest entries, sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from loraprobe.merging._method import (
    Deltas,
    Matrix,
    MergeMethod,
    Weights,
    check_density,
    weighted_sum,
)
from loraprobe.merging._sparse import keep_largest


@dataclass(frozen=True)
class MagnitudePrune(MergeMethod):
    """Keep the largest entries of each delta, not rescaled, and take the weighted sum.

    `density` is the share that is kept; weights are 1/n if none are given.
    """

    density: float = 0.5

    laws: ClassVar[frozenset[str]] = frozenset({"order", "gauge", "homogeneity"})
    formula: ClassVar[str] = "dW = sum_i w_i trim(dW_i)"
    paper: ClassVar[str] = "Han et al. 2015, Learning weights and connections (arXiv 1506.02626)"

    def __post_init__(self) -> None:
        check_density(self.density)

    def __call__(
        self, deltas: Deltas, weights: Weights, generators: Sequence[torch.Generator] = ()
    ) -> Matrix:
        return weighted_sum(keep_largest(deltas, self.density), weights)
