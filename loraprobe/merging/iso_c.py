"""iso_c: the sum of the deltas with a flat spectrum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from loraprobe.merging._method import Deltas, Matrix, Weights
from loraprobe.merging._spectral import SpectralMethod, components, scaled


@dataclass(frozen=True)
class IsoC(SpectralMethod):
    """Iso-C: every singular value of sum_i w_i dW_i replaced by their mean.

    The mean is over the numerical rank of the sum, and no direction beyond it is touched. The
    authors' code runs over all min(out, in) values; those of a low-rank sum are mostly zero and
    have arbitrary vectors, to which it would give the same size as to the rest. What stands here
    is their method on the core matrices of independent adapters (Core Space, Panariello et al.
    2025), in every space alike. Weights are 1 each if none are given, the sum of the paper, whose
    alpha is a common weight. Faint directions come out as strong as the rest, by definition.
    """

    formula: ClassVar[str] = "dW = mean(S) U V^T, U diag(S) V^T = sum_i w_i dW_i"
    paper: ClassVar[str] = "Marczak et al. 2025, Isotropic model merging (arXiv 2502.04959)"

    def __call__(
        self, deltas: Deltas, weights: Weights, generators: Sequence[torch.Generator] = ()
    ) -> Matrix:
        weighted = scaled(deltas, weights)
        found = components(weighted.sum(0), float(weighted.norm()))
        return (found.U * found.S.sum() / max(1, len(found.S))) @ found.Vh
