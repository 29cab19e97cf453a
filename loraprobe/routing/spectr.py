"""SpectR: routes each token to the experts that would add the longest vector to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from loraprobe.lora.lowrank import RANK_TOLERANCE, LowRank, owners
from loraprobe.routing._scored_router import SCORED_LAWS, CachedMatrix, ScoredRouter, Scores
from loraprobe.routing.arrow import right_spectrum

Spectrum = Literal["weighted", "flat"]


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
    spectrum: Spectrum = "weighted"

    laws: ClassVar[frozenset[str]] = SCORED_LAWS
    registry_name: ClassVar[str] = "spectr"
    formula: ClassVar[str] = (
        "y = W x + sum_i g_i(x) s_i B_i A_i x,  g = softmax(top_k ||s_i B_i A_i x|| / temperature)"
    )
    paper: ClassVar[str] = "arXiv 2504.03454"

    def scores(self, module: str, experts: Sequence[LowRank], n: int) -> Scores:
        return SpectralScores(experts, self.spectrum)


class SpectralScores(Scores):
    """||S V^T x|| (weighted) or ||V^T x|| (flat) of the experts of one module."""

    def __init__(self, experts: Sequence[LowRank], spectrum: Spectrum) -> None:
        projections = [projection(expert, spectrum) for expert in experts]
        rows = torch.cat(projections)
        owner = owners([len(rows) for rows in projections])
        self.rows = CachedMatrix(rows)  # [R, in], those of all experts
        self.owner = CachedMatrix(owner.mT.to(rows.dtype))  # [k, R]

    def __call__(self, x: Float[Tensor, "*tokens in"]) -> Float[Tensor, "*tokens 1 k"]:
        squares = F.linear(x, self.rows.like(x)).square()
        return F.linear(squares, self.owner.like(x)).sqrt().unsqueeze(-2)


def projection(update: LowRank, spectrum: Spectrum = "weighted") -> Float[Tensor, "k in"]:
    """S V^T, or V^T, for the k singular values above rounding: [k, in]; k = 0 for a zero delta."""
    S, Vh = right_spectrum(update)
    kept = (RANK_TOLERANCE * S[:1] < S) & (S > 0)
    rows = Vh[kept] if spectrum == "flat" else S[kept, None] * Vh[kept]
    return rows.to(update.A.dtype)
