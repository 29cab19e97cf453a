"""dare_ties: drop at random and rescale, elect a sign, average what agrees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from loraprobe.merging._election import ElectingMethod, Variant
from loraprobe.merging._method import Deltas, Matrix, Weights
from loraprobe.merging._sparse import Rescale, at_random, fuse, settle


@dataclass(frozen=True)
class DareTies(ElectingMethod):
    """DARE's random dropping in place of TIES' trimming, then TIES' election and merge.

    `density`, the masks and `rescale` as in `dare_linear`, `election` as in `ties`.
    `variant="peft"` divides what survives by density, elects before weighting and divides what
    agrees by its count. `variant="mergekit"` keeps each delta's l1 norm, elects after weighting
    and *sums* what agrees, since mergekit does not normalize here by default: `normalize=true`
    divides by the weights that agree. `lambda` scales the result.
    """

    variant: Variant = "peft"
    rescale: Rescale = "auto"

    formula: ClassVar[str] = "dW = mean over {i: sign(D_i) = elected} of w_i D_i, D_i = dare(dW_i)"
    paper: ClassVar[str] = "Yu et al. 2024, Language models are super Mario (arXiv 2311.03099)"

    def __post_init__(self) -> None:
        super().__post_init__()
        peft = self.variant == "peft"
        settle(self, normalize=peft, rescale="probability" if peft else "l1")

    def counts(self) -> bool:
        """As peft does, if that is the variant."""
        return self.variant == "peft"

    def __call__(
        self, deltas: Deltas, weights: Weights, generators: Sequence[torch.Generator] = ()
    ) -> Matrix:
        kept = at_random(self.density, generators, divide=self.rescale == "probability")
        return fuse(deltas, kept, self.elected(weights), self.rescale)
