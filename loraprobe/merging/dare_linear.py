"""dare_linear: drop at random, rescale, sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from loraprobe.merging._method import Deltas, Matrix, Weights, weighted_sum
from loraprobe.merging._sparse import SparseMethod, keep_at_random


@dataclass(frozen=True)
class DareLinear(SparseMethod):
    """DARE: drop entries of each delta at random, rescale the rest, take the weighted sum.

    An entry survives with probability `density` (0.5 by default; the paper goes down to 0.1) and
    is divided by it; weights are 1/n if none are given. The expectation over masks is task
    arithmetic. A masked delta has full rank, so compression to the sources' ranks takes most of
    the mask's noise out again and the error it reports is large. The mask is drawn from the seed,
    the module and the content of the adapter's delta: equal adapters get equal masks.
    """

    formula: ClassVar[str] = "dW = sum_i w_i (m_i * dW_i) / density, m_i ~ Bernoulli(density)"
    paper: ClassVar[str] = "Yu et al. 2024, Language models are super Mario (arXiv 2311.03099)"

    def __call__(
        self, deltas: Deltas, weights: Weights, generators: Sequence[torch.Generator] = ()
    ) -> Matrix:
        return weighted_sum(keep_at_random(deltas, self.density, generators), weights)
