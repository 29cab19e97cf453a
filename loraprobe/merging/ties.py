"""ties: trim, elect a sign, average what agrees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from loraprobe.merging._method import Deltas, Matrix, Weights
from loraprobe.merging._sparse import ElectingMethod, elect_and_merge, keep_largest


@dataclass(frozen=True)
class Ties(ElectingMethod):
    """TIES: keep the largest entries of each delta, elect a sign per entry, average what agrees.

    The name has two meanings in the field. `variant="peft"` elects from the entries before they
    are weighted and divides by how many agree, so weights of 1 are the paper's method with
    lambda = 1 and weights of 1/n shrink the result. `variant="mergekit"` elects after weighting
    and divides by the weights of those that agree, so a common factor of the weights cancels.
    Without weights (1 each) the two agree. `election` is "total" (sign of the sum, the paper's) or
    "frequency" (sign of the majority). The paper trims to density 0.2.

    Identity fails by definition at density < 1: a lone adapter is trimmed too. Signs and sizes of
    entries change with the basis, so TIES in `core` is another method than TIES in `full`.
    """

    density: float = 0.2

    formula: ClassVar[str] = "dW = mean over {i: sign(T_i) = elected} of w_i T_i, T_i = trim(dW_i)"
    paper: ClassVar[str] = "Yadav et al. 2023, TIES-Merging (arXiv 2306.01708)"

    def __call__(
        self, deltas: Deltas, weights: Weights, generators: Sequence[torch.Generator] = ()
    ) -> Matrix:
        trimmed = keep_largest(deltas, self.density)
        return elect_and_merge(trimmed, weights, self.election, self.variant)
