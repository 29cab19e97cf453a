"""factor_average: A and B averaged separately, which is not the average of the deltas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loraprobe.merging._method import (
    Deltas,
    FactorMethod,
    Generators,
    Matrix,
    Weights,
    weighted_sum,
)


@dataclass(frozen=True)
class FactorAverage(FactorMethod):
    """The A's and the B's are combined separately, and the product of both is the result.

    Several tools call this the average of two LoRAs. It contains the cross terms B_i A_j of one
    adapter's B with another's A, it changes if the same delta is stored in another basis, and it is
    exact only if the adapters share A or share B. It reproduces such merges and measures their
    error (diagnostic `cross_terms`); use `uniform` for the average.

    variant="mean": A = sum w_i A_i, B = sum w_i B_i (as in LoraHub and federated averaging; 1/n
    each if no weights are given). variant="peft": square roots of the weights on both factors, as
    in peft's `linear`, the sign of a negative weight on A. Both put the scaling's square root into
    each factor. All adapters need equal ranks and equal modules: a module that an adapter does not
    adapt has no factors to average.
    """

    variant: Literal["mean", "peft"] = "mean"

    formula = "dW = (sum_i w_i B_i) (sum_i w_i A_i), or sqrt(w_i) with variant=peft"
    paper = "Huang et al. 2023, LoraHub (arXiv 2307.13269); peft's 'linear'"

    def __call__(self, deltas: Deltas, weights: Weights, generators: Generators = ()) -> Matrix:
        """Combine one kind of factor: [n, r, in] or [n, out, r]."""
        return weighted_sum(deltas, weights)

    def factor_weights(self, weights: Weights) -> tuple[Weights, Weights]:
        """The weights of the A's and those of the B's."""
        if self.variant == "mean":
            return weights, weights
        return weights.sign() * weights.abs().sqrt(), weights.abs().sqrt()
