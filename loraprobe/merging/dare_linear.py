"""dare_linear: drop at random, rescale, sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from loraprobe.merging._election import Variant
from loraprobe.merging._method import Deltas, Matrix, Weights, weighted_sum
from loraprobe.merging._sparse import Rescale, SparseMethod, at_random, fuse, settle


@dataclass(frozen=True)
class DareLinear(SparseMethod):
    """DARE: drop entries of each delta at random, rescale the rest, take the weighted sum.

    An entry survives with probability `density` (0.5 by default; the paper goes down to 0.1);
    weights are 1/n if none are given. What survives is rescaled: by 1/density in the paper and in
    `variant="peft"`, so that the expectation over masks is task arithmetic; in
    `variant="mergekit"` (0.1.x; older releases divided by density too) so that each delta keeps
    its l1 norm. `rescale` sets it by name: probability, l1, l2, linf or off.

    mergekit's normalize and lambda are factors of the weights here: give w_i / sum of w, or
    lambda w_i. One density serves all adapters and layers.

    A masked delta has full rank, so compression to the sources' ranks takes most of the mask's
    noise out again and the error it reports is large. The mask is drawn from the seed, the module
    and the content of the adapter's delta: equal adapters get equal masks.
    """

    variant: Variant = "peft"
    rescale: Rescale = "auto"

    formula: ClassVar[str] = "dW = sum_i w_i (m_i * dW_i) / density, m_i ~ Bernoulli(density)"
    paper: ClassVar[str] = "Yu et al. 2024, Language models are super Mario (arXiv 2311.03099)"

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, rescale="probability" if self.variant == "peft" else "l1")

    def __call__(
        self, deltas: Deltas, weights: Weights, generators: Sequence[torch.Generator] = ()
    ) -> Matrix:
        kept = at_random(self.density, generators, divide=self.rescale == "probability")
        return fuse(deltas, kept, partial(weighted_sum, weights=weights), self.rescale)
