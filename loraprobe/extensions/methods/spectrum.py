"""SpectR and LAG: routers that score experts by the whole right spectrum of their deltas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from loraprobe.lora.lowrank import RANK_TOLERANCE, LowRank, owners
from loraprobe.routing.scored import (
    ONE_EXPERT_LAWS,
    SCORED_LAWS,
    ArrowScores,
    CachedMatrix,
    ExpertScores,
    ScoredRouter,
    right_spectrum,
)

SpectrumKind = Literal["weighted", "flat"]


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

    one_score: ClassVar[bool] = False
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


def projection(update: LowRank, spectrum: SpectrumKind = "weighted") -> Float[Tensor, "k in"]:
    """S V^T, or V^T, for the k singular values above rounding: [k, in]; k = 0 for a zero delta."""
    S, Vh = right_spectrum(update)
    kept = (RANK_TOLERANCE * S[:1] < S) & (S > 0)
    rows = Vh[kept] if spectrum == "flat" else S[kept, None] * Vh[kept]
    return rows.to(update.A.dtype)
