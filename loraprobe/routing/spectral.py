"""Routers by the singular values and vectors of the experts' deltas.

`arrow` uses the strongest input direction of each delta, `spectr` all of them, `lag` both in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64
from torch import Tensor

from loraprobe.lora.lowrank import RANK_TOLERANCE, LowRank, owners
from loraprobe.routing._scored_router import (
    ONE_EXPERT_LAWS,
    SCORED_LAWS,
    CachedMatrix,
    ExpertScores,
    ScoredRouter,
)

CANCELLED = 1e-14  # share of the factors' norms below which a delta is zero but for rounding

SpectrumKind = Literal["weighted", "flat"]


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

    def scores(self, module: str, experts: Sequence[LowRank], n: int) -> ExpertScores:
        return ArrowScores(experts)


class ArrowScores(ExpertScores):
    """|x . v_i| of the experts of one module; prototypes: [k, in], unit vectors or zero."""

    def __init__(self, experts: Sequence[LowRank]) -> None:
        self.prototypes = CachedMatrix(torch.stack([prototype(expert) for expert in experts]))

    def __call__(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens 1 k"]:
        return F.linear(x, self.prototypes.like(x)).abs().unsqueeze(-2)


@dataclass(frozen=True)
class SpectR(ScoredRouter):
    """Gates from the length of x's projection on the whole right spectrum of each expert's delta.

    With delta W_i = s_i B_i A_i = U S V^T, score_i = ||S V^T x|| = ||s_i B_i A_i x||: the length
    of what the expert would add to this token. Arrow uses one direction, SpectR all of them. The
    top_k highest share a softmax at `temperature`. Nothing is normalised: experts with large deltas
    and tokens with a large norm have high scores; `normalize` divides x by its length.

    There are two definitions. The authors' released code (wfleshman/spectr) projects on orthonormal
    rows, score_i = ||V^T x||, so that an expert's size does not matter, and gives the chosen 1/k
    each: `spectrum=flat,temperature=inf` gives those gates. That code sums the A's and the B's
    separately before they are multiplied, which adds cross terms between experts; here every expert
    is multiplied out separately. top_k=4 is the default of that code. Directions with singular
    values below 1e-6 of the largest are rounding and do not count. `per=sequence` decides once for
    each prompt by the mean of its tokens' scores.
    """

    top_k: int = 4
    spectrum: SpectrumKind = "weighted"

    laws: ClassVar[frozenset[str]] = SCORED_LAWS
    registry_name: ClassVar[str] = "spectr"
    formula: ClassVar[str] = (
        "y = W x + sum_i g_i(x) s_i B_i A_i x,  g = softmax(top_k ||s_i B_i A_i x|| / temperature)"
    )
    paper: ClassVar[str] = "arXiv 2504.03454"

    def scores(self, module: str, experts: Sequence[LowRank], n: int) -> ExpertScores:
        return SpectralScores(experts, self.spectrum)


class SpectralScores(ExpertScores):
    """||S V^T x|| (weighted) or ||V^T x|| (flat) of the experts of one module."""

    def __init__(self, experts: Sequence[LowRank], spectrum: SpectrumKind) -> None:
        projections = [projection(expert, spectrum) for expert in experts]
        rows = torch.cat(projections)
        owner = owners([len(rows) for rows in projections])
        self.rows = CachedMatrix(rows)  # [R, in], those of all experts
        self.owner = CachedMatrix(owner.mT.to(rows.dtype))  # [k, R]

    def __call__(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens 1 k"]:
        squares = F.linear(x, self.rows.like(x)).square()
        return F.linear(squares, self.owner.like(x)).sqrt().unsqueeze(-2)


@dataclass(frozen=True)
class LAG(ScoredRouter):
    """Gates in two steps, per module and token: `preselect` by Arrow's score, top_k by SpectR's.

    The `preselect` experts with the highest |x . v_i| are kept; of those the top_k with the highest
    ||s_i B_i A_i x|| share a softmax at `temperature`. With top_k=1, the default, the best has gate
    1. With at most `preselect` experts the router is SpectR at that top_k; with preselect=1 it is
    Arrow at top_k=1. Both numbers are clamped to the experts present.

    In the paper the first step saves work in libraries of hundreds of adapters. Here both scores
    are computed for all experts, so the choice is the paper's but not its speed. preselect=20 is a
    default of this package. `spectrum` is that of SpectR. `per=sequence` decides once for each
    prompt, by the means of both scores over its tokens.
    """

    top_k: int = 1
    preselect: int = 20
    spectrum: SpectrumKind = "weighted"

    laws: ClassVar[frozenset[str]] = ONE_EXPERT_LAWS
    formula: ClassVar[str] = (
        "P = preselect highest |x . v_i|,  g = softmax(top_k ||s_i B_i A_i x|| / temperature, i in P)"  # noqa: E501
    )
    paper: ClassVar[str] = "arXiv 2507.05346"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preselect < 1:
            raise ValueError(f"preselect must be at least 1, not {self.preselect}")

    def scores(self, module: str, experts: Sequence[LowRank], n: int) -> ExpertScores:
        return _TwoSteps(experts, self)


class _TwoSteps(ExpertScores):
    """Arrow's scores and SpectR's: [..., 2, k]."""

    def __init__(self, experts: Sequence[LowRank], options: LAG) -> None:
        self.arrow = ArrowScores(experts)
        self.spectral = SpectralScores(experts, options.spectrum)
        self.preselect = options.preselect

    def __call__(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens 2 k"]:
        return torch.cat([self.arrow(x), self.spectral(x)], dim=-2)

    def final(self, scores: Float[Tensor, "*tokens 2 k"]) -> Float[Tensor, "*tokens k"]:
        arrow, spectral = scores.unbind(-2)
        if self.preselect >= arrow.shape[-1]:
            return spectral
        index = arrow.topk(self.preselect, dim=-1).indices
        kept = torch.full_like(spectral, float("-inf"))
        return kept.scatter(-1, index, spectral.gather(-1, index))


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


def projection(update: LowRank, spectrum: SpectrumKind = "weighted") -> Float[Tensor, "k in"]:
    """S V^T, or V^T, for the k singular values above rounding: [k, in]; k = 0 for a zero delta."""
    S, Vh = right_spectrum(update)
    kept = (RANK_TOLERANCE * S[:1] < S) & (S > 0)
    rows = Vh[kept] if spectrum == "flat" else S[kept, None] * Vh[kept]
    return rows.to(update.A.dtype)
