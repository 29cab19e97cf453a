"""Weighted sums: of the deltas, and of the factors (which is not a sum of the deltas)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loraprobe.merging._method import FactorMethod, LinearMethod, Weights


@dataclass(frozen=True)
class TaskArithmetic(LinearMethod):
    """sum_i w_i dW_i, the weights as given, negative ones included; 1/n each if none are given.

    The sum is that of the deltas. peft's `cat` and full-rank `svd` agree with it; peft's `linear`,
    which combines A and B separately, does not (`factor_average:variant=peft`).
    """

    formula = "dW = sum_i w_i dW_i"
    paper = "Ilharco et al. 2023, Task arithmetic (arXiv 2212.04089)"


@dataclass(frozen=True)
class Uniform(LinearMethod):
    """(1/n) sum_i dW_i, whatever weights are given.

    The "parameter averaging" of the reuse papers, on the deltas and not on the factors: averaging
    A and B separately is another method (`factor_average`). Equal to gates of 1/n at run time.
    """

    takes_weights = False
    formula = "dW = (1/n) sum_i dW_i"
    paper = "Wortsman et al. 2022, Model soups (arXiv 2203.05482)"


@dataclass(frozen=True)
class Sum(LinearMethod):
    """sum_i dW_i, whatever weights are given (`task_arithmetic` takes them).

    The result of merging the adapters into the base one after the other. Equal to gates of 1.
    """

    takes_weights = False
    formula = "dW = sum_i dW_i"
    paper = "Ilharco et al. 2023, Task arithmetic (arXiv 2212.04089)"

    def default_weights(self, n: int) -> tuple[float, ...]:
        """1 each."""
        return (1.0,) * n


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

    def factor_weights(self, weights: Weights) -> tuple[Weights, Weights]:
        """The weights of the A's and those of the B's."""
        if self.variant == "mean":
            return weights, weights
        return weights.sign() * weights.abs().sqrt(), weights.abs().sqrt()
