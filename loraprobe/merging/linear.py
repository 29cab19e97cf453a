"""Linear combinations: of the deltas, with given coefficients or with those that follow from their
lengths and angles, and of the factors, which is no combination of the deltas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float64
from torch import Tensor

from loraprobe.errors import UsageError
from loraprobe.merging._method import FactorMethod, GramMethod, LinearMethod, Weights

# Above this cosine the interpolation is linear, as in mergekit: the formula of the arc divides by
# the sine of the angle.
PARALLEL = 0.9995


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
class Slerp(GramMethod):
    """Spherical interpolation of two deltas, module by module, each flattened to one vector.

    Weights w_1, w_2 (1/2 each if none are given) set the point on the arc, t = w_2 / (w_1 + w_2),
    and the length: the result is w_1 + w_2 times that point. So weights that sum to 1 are those of
    mergekit's `nuslerp` with a base model, and of its `slerp` with that t, on deltas. (mergekit's
    `slerp` is mostly used on full weights, where the angle is nearly 0 and the result the average.)
    Deltas keep their own lengths: the deltas are interpolated, not their unit vectors. If the size
    of the cosine is above 0.9995, which includes opposite deltas, the interpolation is linear. A
    zero delta counts as orthogonal, so cos(t pi/2) of the other one is left.
    """

    formula = "dW = (w_1 + w_2) (sin((1-t) a) dW_1 + sin(t a) dW_2) / sin(a), t = w_2 / (w_1 + w_2)"
    paper = "Shoemake 1985, Animating rotation with quaternion curves"

    def check(self, weights: Sequence[float]) -> None:
        """Two adapters (or one), weights that are not negative and not all zero."""
        if len(weights) > 2:
            raise UsageError(
                f"slerp goes from one adapter to another and cannot take {len(weights)}; give it "
                "two, or take model_stock or task_arithmetic for more."
            )
        if min(weights) < 0 or sum(weights) == 0:
            given = ", ".join(f"{weight:g}" for weight in weights)
            raise UsageError(
                f"slerp needs weights of 0 or more, one above 0, not {given}; task_arithmetic "
                "takes negative ones."
            )

    def coefficients(
        self, weights: Sequence[float], inner: Float64[Tensor, "n n"]
    ) -> tuple[float, ...]:
        """The two factors of the arc; the weight itself for a single adapter."""
        self.check(weights)
        if len(weights) == 1:
            return tuple(weights)
        total = sum(weights)
        t = weights[1] / total
        lengths = float((inner[0, 0].clamp_min(0) * inner[1, 1].clamp_min(0)).sqrt())
        cosine = float(inner[0, 1]) / lengths if lengths > 0 else 0.0
        if abs(cosine) > PARALLEL:
            return tuple(weights)
        angle = math.acos(cosine)
        return tuple(total * math.sin(part * angle) / math.sin(angle) for part in (1 - t, t))


@dataclass(frozen=True)
class ModelStock(GramMethod):
    """Model Stock: the mean of the deltas times t = N c / (1 + (N - 1) c), c their cosine.

    Per module, on deltas, so that the pretrained weights are the origin. For more than two
    adapters the paper assumes one angle between all pairs; here, as in mergekit, c is the mean of
    the pairs' cosines (fusion_bench takes the cosine of their mean angle). A cosine below zero
    gives t = 0, since the formula has a pole at c = -1/(N - 1); in mergekit and fusion_bench t
    becomes negative there. Deltas of independent adapters are nearly orthogonal, and then little is
    left of them, by definition.

    Only deltas that are not zero count for c and N; a module that a single adapter changes gets
    its mean (t = 1). The mean is over all adapters, as everywhere. Given weights are not used.
    """

    takes_weights = False
    formula = "dW = t (1/n) sum_i dW_i, t = N c / (1 + (N - 1) c), c = cos(dW_i, dW_j)"
    paper = "Jang et al. 2024, Model Stock (arXiv 2403.19522)"

    def coefficients(
        self, weights: Sequence[float], inner: Float64[Tensor, "n n"]
    ) -> tuple[float, ...]:
        """t/n each."""
        n, present = len(inner), inner.diagonal() > 0
        N, t = int(present.sum()), 1.0
        if N > 1:
            lengths = inner.diagonal()[present].sqrt()
            cosines = inner[present][:, present] / (lengths[:, None] * lengths)
            c = float(cosines.triu(1).sum()) / (N * (N - 1) / 2)
            t = N * c / (1 + (N - 1) * c) if c > 0 else 0.0
        return (t / n,) * n


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
