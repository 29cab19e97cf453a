"""Arrow: each token goes to the experts whose strongest input direction it points along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from loraprobe.composition import Router, TokenGates
from loraprobe.lowrank import LowRank


@dataclass(frozen=True)
class Arrow(Router):
    """Gates from the top right singular vector v_i of each expert's delta, per module and token.

    score_i = |x . v_i|; the top_k highest share a softmax at `temperature`, the rest get 0. v_i is
    exact (SVD of an r x r core), so it depends on the delta and not on how A and B are stored;
    where the two largest singular values are equal it is one of the directions they span. An
    expert whose delta is zero in a module scores 0 there.

    top_k is clamped to the number of experts present. As in the paper's own code (microsoft/mttl:
    input_norm_fn "id", router_temp 1) and in peft, x is not normalised, so long tokens are routed
    more sharply than short ones; `normalize` divides x by its length, which makes the score a
    cosine. mttl lets all experts take part unless told otherwise; top_k=3 is peft's default.
    """

    top_k: int = 3
    temperature: float = 1.0
    normalize: bool = False

    constant: ClassVar[bool] = False
    laws: ClassVar[frozenset[str]] = frozenset(
        {"identity", "order", "gauge", "homogeneity", "absent_is_neutral"}
    )
    formula: ClassVar[str] = (
        "y = W x + sum_i g_i(x) s_i B_i A_i x,  g = softmax(top_k |x . v_i| / temperature)"
    )
    paper: ClassVar[str] = "arXiv 2405.11157"

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, not {self.top_k}")
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"temperature must be a positive number, not {self.temperature}")

    def gates(
        self, module: str, experts: Sequence[LowRank], present: Sequence[int], n: int
    ) -> Float[Tensor, 1] | TokenGates:
        """A function x [..., in] -> [..., k]; the constant 1 where one expert is alone."""
        if len(experts) == 1:
            return torch.ones(1)
        prototypes = torch.stack([prototype(expert) for expert in experts])
        return ArrowGates(prototypes, min(self.top_k, len(experts)), self)


class ArrowGates:
    """The gates of one module. prototypes: [k, in], unit vectors or zero."""

    def __init__(self, prototypes: Float[Tensor, "k in"], top_k: int, options: Arrow) -> None:
        self.prototypes, self.top_k, self.options = prototypes, top_k, options
        self._moved = {(prototypes.device, prototypes.dtype): prototypes}

    def __call__(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens k"]:
        """x: [..., in] -> gates [..., k] that sum to 1, at most top_k of them above 0."""
        if self.options.normalize:
            x = F.normalize(x, dim=-1)
        scores = F.linear(x, self._prototypes(x)).abs()
        if self.top_k < scores.shape[-1]:
            best, index = scores.topk(self.top_k, dim=-1)
            scores = torch.full_like(scores, float("-inf")).scatter(-1, index, best)
        return (scores / self.options.temperature).softmax(-1)

    def _prototypes(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "k in"]:
        place = (x.device, x.dtype)
        if place not in self._moved:
            self._moved[place] = self.prototypes.to(device=x.device, dtype=x.dtype)
        return self._moved[place]


def prototype(update: LowRank) -> Float[Tensor, "in"]:
    """The unit vector [in] that delta W stretches most; zero for a zero delta. Sign arbitrary."""
    _, S, Vh = update.to(dtype=torch.float64).svd()
    return (Vh[0] * (S[0] > 0)).to(update.A.dtype)
