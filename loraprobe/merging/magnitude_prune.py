"""magnitude_prune: keep the largest entries, sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from loraprobe.merging._method import Deltas, Matrix, Weights, weighted_sum
from loraprobe.merging._sparse import Norm, SparseMethod, fuse, largest


@dataclass(frozen=True)
class MagnitudePrune(SparseMethod):
    """Keep the largest entries of each delta and take the weighted sum.

    `density` is the share that is kept; weights are 1/n if none are given. `rescale` is off, as in
    peft, or gives what is left of each delta the l1, l2 or linf norm that the delta had. mergekit
    has no method of this name; its knob of that kind is the same in the methods it has.
    """

    rescale: Norm = "off"

    formula: ClassVar[str] = "dW = sum_i w_i trim(dW_i)"
    paper: ClassVar[str] = "Han et al. 2015, Learning weights and connections (arXiv 1506.02626)"

    def __call__(
        self, deltas: Deltas, weights: Weights, generators: Sequence[torch.Generator] = ()
    ) -> Matrix:
        trimmed = largest(deltas, self.density)
        return fuse(deltas, trimmed, partial(weighted_sum, weights=weights), self.rescale)
