"""iso_cts: a flat spectrum over what the deltas share and over what each has of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from loraprobe.merging._method import Deltas, Matrix, Weights
from loraprobe.merging._spectral import SpectralMethod, assembled, components, scaled


@dataclass(frozen=True)
class IsoCts(SpectralMethod):
    """Iso-CTS: the leading directions of the sum and some of each delta alone, all equally strong.

    Of the rank R of sum_i w_i dW_i a share `common` is kept as the common space (0.8, the authors'
    default). What remains of each w_i dW_i outside its left vectors gives its leading components,
    equally many from each adapter, R in all; the common share is adjusted so that they divide
    evenly (as in the authors' code). All vectors are made orthogonal (Procrustes, as in `tsv`), and
    every singular value becomes the mean of those gathered.

    R is the numerical rank, where the authors' code has min(out, in): see `iso_c`. An adapter with
    too few components of its own gives what it has, and the mean is over what was gathered. A
    lone adapter gives `iso_c`. Weights are 1 each if none are given.
    """

    common: float = 0.8

    formula: ClassVar[str] = (
        "dW = mean(S) P_U P_V^T over the top of sum_i w_i dW_i and of each w_i dW_i outside it"
    )
    paper: ClassVar[str] = "Marczak et al. 2025, Isotropic model merging (arXiv 2502.04959)"

    def __post_init__(self) -> None:
        if not 0 <= self.common <= 1:
            raise ValueError(
                f"common, the common space's share of the rank, is from 0 to 1, not {self.common}."
            )

    def __call__(
        self, deltas: Deltas, weights: Weights, generators: Sequence[torch.Generator] = ()
    ) -> Matrix:
        weighted = scaled(deltas, weights)
        whole = components(weighted.sum(0), float(weighted.norm()))
        each = self._each(len(whole.S), len(deltas))
        shared = whole.first(len(whole.S) - each * len(deltas))
        parts = []
        for delta in weighted:
            own = delta - shared.U @ (shared.U.mT @ delta)
            parts.append(components(own, float(delta.norm())).first(each))
        parts.append(shared)
        gathered = torch.cat([part.S for part in parts])
        mean = gathered.sum() / max(1, len(gathered))
        return assembled(parts, mean.expand(len(gathered)))

    def _each(self, rank: int, n: int) -> int:
        """How many components each of n adapters adds to the common ones."""
        each = round((rank - int(rank * self.common)) / n)
        return min(each, rank // n)
