"""model_stock: the mean of the deltas, shrunk by the angle between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float64
from torch import Tensor

from loraprobe.merging._method import GramMethod


@dataclass(frozen=True)
class ModelStock(GramMethod):
    """Model Stock: the mean of the deltas times t = N c / (1 + (N - 1) c), c their cosine.

    Per module, on deltas, so that the pretrained weights are the origin. For more than two
    adapters the paper assumes one angle between all pairs; `angle="cosine"` takes the mean of the
    pairs' cosines (mergekit), `angle="degrees"` the cosine of the mean of their angles
    (fusion_bench). A cosine below zero gives t = 0, since the formula has a pole at
    c = -1/(N - 1); in mergekit and fusion_bench t becomes negative there. Deltas of independent
    adapters are nearly orthogonal, and then little is left of them, by definition.

    Only deltas that are not zero count for c and N; a module that a single adapter changes gets
    its mean (t = 1). The mean is over all adapters, as everywhere. Given weights are not used.
    """

    angle: Literal["cosine", "degrees"] = "cosine"

    takes_weights = False
    formula = "dW = t (1/n) sum_i dW_i, t = N c / (1 + (N - 1) c), c = cos(dW_i, dW_j)"
    paper = "Jang et al. 2024, Model Stock (arXiv 2403.19522)"

    def coefficients(
        self, weights: Sequence[float], inner: Float64[Tensor, "n n"]
    ) -> tuple[float, ...]:
        """t/n each."""
        n = len(inner)
        return (self._ratio(inner) / n,) * n

    def _ratio(self, inner: Float64[Tensor, "n n"]) -> float:
        present = inner.diagonal() > 0
        N = int(present.sum())
        if N < 2:
            return 1.0
        inner = inner[present][:, present]
        lengths = inner.diagonal().sqrt()
        above = inner.new_ones(N, N).triu(1).bool()
        cosines = (inner / (lengths[:, None] * lengths))[above].clamp(-1, 1)
        c = float(cosines.mean()) if self.angle == "cosine" else math.cos(cosines.acos().mean())
        return N * c / (1 + (N - 1) * c) if c > 0 else 0.0
