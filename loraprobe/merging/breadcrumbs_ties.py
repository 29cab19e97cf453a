"""breadcrumbs_ties: drop the outliers and the small entries, elect a sign, fuse what agrees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from loraprobe.merging._election import ElectingMethod
from loraprobe.merging._method import Deltas, Matrix, Weights
from loraprobe.merging._sparse import Norm, between, check_gamma, fuse, settle


@dataclass(frozen=True)
class BreadcrumbsTies(ElectingMethod):
    """The mask of Model Breadcrumbs in place of TIES' trimming, then TIES' election.

    `density`, `gamma` and `rescale` as in `breadcrumbs`, `election` and `lambda` as in `ties`.
    The combination is mergekit's own, in no paper, and peft has none, so there is one variant:
    entries are weighted, a sign is elected, and those that carry it are *summed*, with weights of
    1/n if none are given; `normalize=true` divides by the weights that agree.
    """

    gamma: float = 0.01
    rescale: Norm = "off"

    formula: ClassVar[str] = (
        "dW = sum over {i: sign(w_i M_i) = elected} of w_i M_i, M_i = m_i * dW_i"
    )
    paper: ClassVar[str] = "Davari & Belilovsky 2023, Model Breadcrumbs (arXiv 2312.06795)"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_gamma(self.gamma)
        settle(self, normalize=False)

    def __call__(
        self, deltas: Deltas, weights: Weights, generators: Sequence[torch.Generator] = ()
    ) -> Matrix:
        kept = between(deltas, self.density, self.gamma)
        return fuse(deltas, kept, self.elected(weights), self.rescale)
