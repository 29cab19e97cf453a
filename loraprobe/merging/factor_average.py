"""factor_average: A and B averaged apart, which is not the average of the deltas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from loraprobe.merging._method import Deltas, FactorMethod, Matrix, Weights, weighted_sum


@dataclass(frozen=True)
class FactorAverage(FactorMethod):
    """The A's and the B's are combined each by themselves, and their product is the result.

    What several tools call the average of two LoRAs. It holds the cross terms B_i A_j of one
    adapter's B with another's A, it changes when the same delta is stored in another basis, and it
    is exact only where the adapters share A or share B. Here to reproduce such merges and to
    measure how far they are off (diagnostic `cross_terms`); use `uniform` for the average.

    variant="mean": A = sum w_i A_i, B = sum w_i B_i (LoraHub's and federated averaging's form; 1/n
    each if no weights are given). variant="peft": square roots of the weights on both factors, as
    peft's `linear` does it, the sign of a negative weight on A. Both with the scaling's square root
    in each factor. Equal ranks and equal modules are needed: a module that an adapter leaves alone
    has no factors to average.
    """

    variant: Literal["mean", "peft"] = "mean"

    formula: ClassVar[str] = "dW = (sum_i w_i B_i) (sum_i w_i A_i), or sqrt(w_i) with variant=peft"
    paper: ClassVar[str] = "Huang et al. 2023, LoraHub (arXiv 2307.13269); peft's 'linear'"

    def __call__(
        self, deltas: Deltas, weights: Weights, generators: Sequence[torch.Generator] = ()
    ) -> Matrix:
        """Combine one kind of factor: [n, r, in] or [n, out, r]."""
        return weighted_sum(deltas, weights)

    def apart(self, weights: Weights) -> tuple[Weights, Weights]:
        """The weights for the A's and for the B's."""
        if self.variant == "mean":
            return weights, weights
        return weights.sign() * weights.abs().sqrt(), weights.abs().sqrt()
