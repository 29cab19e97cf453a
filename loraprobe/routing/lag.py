"""LAG: Arrow's score preselects experts, SpectR's score chooses among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from loraprobe.lora.lowrank import LowRank
from loraprobe.routing._scored_router import ONE_EXPERT_LAWS, ScoredRouter, Scores
from loraprobe.routing.arrow import ArrowScores
from loraprobe.routing.spectr import SpectralScores, Spectrum


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
    spectrum: Spectrum = "weighted"

    laws: ClassVar[frozenset[str]] = ONE_EXPERT_LAWS
    formula: ClassVar[str] = (
        "P = preselect highest |x . v_i|,  g = softmax(top_k ||s_i B_i A_i x|| / temperature, i in P)"  # noqa: E501
    )
    paper: ClassVar[str] = "arXiv 2507.05346"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preselect < 1:
            raise ValueError(f"preselect must be at least 1, not {self.preselect}")

    def scores(self, module: str, experts: Sequence[LowRank], n: int) -> Scores:
        return _TwoSteps(experts, self)


class _TwoSteps(Scores):
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
