"""dare_ties: drop at random and rescale, elect a sign, average what agrees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from loraprobe.merging._method import Deltas, Matrix, Weights
from loraprobe.merging._sparse import ElectingMethod, elect_and_merge, keep_at_random


@dataclass(frozen=True)
class DareTies(ElectingMethod):
    """DARE's random dropping in place of TIES' trimming, then TIES' election and merge.

    `variant` and `election` as in `ties`, `density` and the masks as in `dare_linear`.
    """

    formula: ClassVar[str] = "dW = mean over {i: sign(D_i) = elected} of w_i D_i, D_i = dare(dW_i)"
    paper: ClassVar[str] = "Yu et al. 2024, Language models are super Mario (arXiv 2311.03099)"

    def __call__(
        self, deltas: Deltas, weights: Weights, generators: Sequence[torch.Generator] = ()
    ) -> Matrix:
        dropped = keep_at_random(deltas, self.density, generators)
        return elect_and_merge(dropped, weights, self.election, self.variant)
