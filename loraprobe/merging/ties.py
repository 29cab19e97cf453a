"""ties: trim, elect a sign, average what agrees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from loraprobe.merging._election import ElectingMethod, Variant
from loraprobe.merging._method import Deltas, Matrix, Weights
from loraprobe.merging._sparse import Norm, fuse, largest, settle


@dataclass(frozen=True)
class Ties(ElectingMethod):
    """TIES: keep the largest entries of each delta, elect a sign per entry, average what agrees.

    The name has two meanings in the field. `variant="peft"` elects from the entries before they
    are weighted and divides by how many agree, so weights of 1 are the paper's method with
    lambda = 1 and weights of 1/n shrink the result. `variant="mergekit"` elects after weighting
    and divides by the weights of those that agree, so a common factor of the weights cancels and
    only `lambda` scales the result. Without weights (1 each) the two agree. `normalize=false`
    sums what agrees in either. `election` is "total" (sign of the sum, the paper's) or "frequency"
    (sign of the majority). `rescale` (off in both) gives what is left of each delta the l1, l2 or
    linf norm that the delta had, as mergekit can.

    The paper trims to density 0.2, of a model's parameters taken as one vector; here, as in peft
    and mergekit, each module is trimmed by itself. int(density p q) entries stay, and those as
    large as the smallest of them; where the sum is zero plus is elected. fusion_bench keeps one
    entry more, and gives such ties the sign of the sum of all signs.

    Not covered of mergekit: a density or a weight for each layer, int8_mask (memory only), and its
    thresholds for small numbers, which let the unit of the weights matter.

    Identity fails by definition at density < 1: a lone adapter is trimmed too. Signs and sizes of
    entries change with the basis, so TIES in `core` is another method than TIES in `full`.
    """

    density: float = 0.2
    variant: Variant = "peft"
    rescale: Norm = "off"

    formula: ClassVar[str] = "dW = mean over {i: sign(T_i) = elected} of w_i T_i, T_i = trim(dW_i)"
    paper: ClassVar[str] = "Yadav et al. 2023, TIES-Merging (arXiv 2306.01708)"

    def __post_init__(self) -> None:
        super().__post_init__()
        settle(self, normalize=True)

    def counts(self) -> bool:
        """As peft does, if that is the variant."""
        return self.variant == "peft"

    def __call__(
        self, deltas: Deltas, weights: Weights, generators: Sequence[torch.Generator] = ()
    ) -> Matrix:
        trimmed = largest(deltas, self.density)
        return fuse(deltas, trimmed, self.elected(weights), self.rescale)
