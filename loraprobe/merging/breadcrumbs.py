"""breadcrumbs: drop the outliers and the small entries, sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch

from loraprobe.merging._method import Deltas, Matrix, Weights, weighted_sum
from loraprobe.merging._sparse import Norm, SparseMethod, between, check_gamma, fuse


@dataclass(frozen=True)
class Breadcrumbs(SparseMethod):
    """Model Breadcrumbs: drop each delta's largest and smallest entries, take the weighted sum.

    Of p q entries the int(gamma p q) of largest magnitude go, and then as many of the smallest as
    leave int(density p q); the counting is mergekit's, with its default gamma; peft has no such
    method. The paper cuts both tails of a layer, each by a share of its own; here the share at the
    top and the share that remains are given. If nothing small is left to drop, fewer of the largest
    go. At density 1 nothing is dropped, whatever gamma. Weights are 1/n if none are given.
    `rescale` is off, as there, or gives what is left of each delta the l1, l2 or linf norm that it
    had.

    Where mergekit differs: if int(gamma p q) is 0 (gamma=0, or a module of few entries) it drops
    everything, by a slice that ends at -0; here nothing of the largest is dropped then. Entries as
    large as a kept one are kept. mergekit's normalize and lambda are factors of the weights.
    """

    gamma: float = 0.01
    rescale: Norm = "off"

    formula: ClassVar[str] = "dW = sum_i w_i m_i * dW_i, m_i = 1 between two magnitudes of dW_i"
    paper: ClassVar[str] = "Davari & Belilovsky 2023, Model Breadcrumbs (arXiv 2312.06795)"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gamma(self.gamma)

    def __call__(
        self, deltas: Deltas, weights: Weights, generators: Sequence[torch.Generator] = ()
    ) -> Matrix:
        kept = between(deltas, self.density, self.gamma)
        return fuse(deltas, kept, partial(weighted_sum, weights=weights), self.rescale)
