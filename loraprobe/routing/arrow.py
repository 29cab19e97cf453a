"""Arrow: routes each token to the experts whose strongest input direction is nearest to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from loraprobe.lora.lowrank import LowRank
from loraprobe.routing._scored_router import SCORED_LAWS, CachedMatrix, ScoredRouter, Scores

CANCELLED = 1e-14  # share of the factors' norms below which a delta is zero but for rounding


@dataclass(frozen=True)
class Arrow(ScoredRouter):
    """Gates from the top right singular vector v_i of each expert's delta, per module and token.

    score_i = |x . v_i|; the top_k highest share a softmax at `temperature`, the rest get 0. v_i is
    exact (SVD of an r x r core), so it depends on the delta and not on how A and B are stored. If
    the two largest singular values are equal, v_i is one of the directions that they span. An
    expert whose delta is zero in a module has score 0 there.

    top_k is clamped to the number of experts present. As in the paper's own code (microsoft/mttl:
    input_norm_fn "id", router_temp 1) and in peft, x is not normalised, so tokens with a large norm
    are routed more sharply than others; `normalize` divides x by its length, which makes the score
    a cosine. mttl uses all experts by default; top_k=3 is peft's default. `per=sequence` decides
    once for each prompt by the mean of its tokens' scores, which is not in the paper.
    """

    laws: ClassVar[frozenset[str]] = SCORED_LAWS | {"homogeneity"}
    formula: ClassVar[str] = (
        "y = W x + sum_i g_i(x) s_i B_i A_i x,  g = softmax(top_k |x . v_i| / temperature)"
    )
    paper: ClassVar[str] = "arXiv 2405.11157"

    def scores(self, module: str, experts: Sequence[LowRank], n: int) -> Scores:
        return ArrowScores(experts)


class ArrowScores(Scores):
    """|x . v_i| of the experts of one module; prototypes: [k, in], unit vectors or zero."""

    def __init__(self, experts: Sequence[LowRank]) -> None:
        self.prototypes = CachedMatrix(torch.stack([prototype(expert) for expert in experts]))

    def __call__(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens 1 k"]:
        return F.linear(x, self.prototypes.like(x)).abs().unsqueeze(-2)


def prototype(update: LowRank) -> Float[Tensor, "in"]:
    """The top right singular vector [in] of delta W, of arbitrary sign; zero for a zero delta."""
    S, Vh = right_spectrum(update)
    return (Vh[0] * (S[0] > 0)).to(update.A.dtype)


def right_spectrum(
    update: LowRank,
) -> tuple[Float64[Tensor, k], Float64[Tensor, "k in"]]:
    """Singular values [k] and right singular vectors [k, in] of delta W.

    Values that are only rounding of factors that cancel each other are 0.
    """
    exact = update.to(dtype=torch.float64)
    _, S, Vh = exact.svd()
    rounding = CANCELLED * abs(float(exact.scaling)) * exact.A.norm() * exact.B.norm()
    return torch.where(rounding < S, S, torch.zeros_like(S)), Vh
