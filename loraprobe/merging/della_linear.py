"""della_linear: drop by magnitude at random, rescale, sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch

from loraprobe.merging._method import Deltas, Matrix, Weights, weighted_sum
from loraprobe.merging._sparse import (
    Rescale,
    SparseMethod,
    by_rank,
    check_epsilon,
    fuse,
    settle,
)


@dataclass(frozen=True)
class DellaLinear(SparseMethod):
    """DELLA's dropping by magnitude and rescaling, then the weighted sum, without an election.

    `density`, `epsilon`, `variant` and `rescale` as in `della`; weights are 1/n if none are given.
    With `variant="authors"` the expectation over masks is task arithmetic. mergekit's normalize
    and lambda are factors of the weights here: give w_i / sum of w, or lambda w_i.
    """

    epsilon: float = 0.15
    variant: Literal["authors", "mergekit"] = "authors"
    rescale: Rescale = "auto"

    formula: ClassVar[str] = (
        "dW = sum_i w_i m_i * dW_i / p_i, m_i ~ Bernoulli(p_i), p_i as in della"
    )
    paper: ClassVar[str] = "Deep et al. 2024, DELLA-Merging (arXiv 2406.11617)"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_epsilon(self.density, self.epsilon)
        settle(self, rescale="l1" if self.variant == "mergekit" else "probability")

    def __call__(
        self, deltas: Deltas, weights: Weights, generators: Sequence[torch.Generator] = ()
    ) -> Matrix:
        divide = self.rescale == "probability"
        kept = by_rank(self.density, self.epsilon, generators, divide)
        return fuse(deltas, kept, partial(weighted_sum, weights=weights), self.rescale)
