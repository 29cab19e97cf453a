"""tsv: the singular vectors of all deltas, made orthogonal to each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from loraprobe.merging._method import Deltas, Matrix, Weights
from loraprobe.merging._spectral import Components, SpectralMethod, assembled, components, scaled


@dataclass(frozen=True)
class Tsv(SpectralMethod):
    """TSV-Merge: task singular vectors side by side, whitened so that no task overlaps another.

    The singular vectors of all w_i dW_i are put side by side, all U_i and all V_i are replaced by
    the nearest orthonormal frame (Procrustes), and the singular values stay. How many each adapter
    keeps: all of its own numerical rank r_i; at most `k`; or with `share` the leading r_i / n,
    rounded up, so that the result is about as large as one of them and adapters of mixed ranks
    keep their proportions. The paper shares out min(out, in) / n, of which a delta of low rank
    fills less: the authors' code, and Core Space's (Panariello et al. 2025), keep all of it.

    Weights multiply the deltas, 1 each if none are given: the paper's alpha is a common weight.
    Vectors that several adapters share are counted once, where the authors' decompositions fill up
    with arbitrary ones; so equal adapters with weights 1 give that adapter.
    """

    k: int | None = None
    share: bool = False

    laws: ClassVar[frozenset[str]] = frozenset({"identity", "order", "gauge", "homogeneity"})
    formula: ClassVar[str] = (
        "dW = P_U diag(S_1..S_n) P_V^T, P_U, P_V = orthonormal nearest to [U_1..U_n], [V_1..V_n]"
    )
    paper: ClassVar[str] = "Gargiulo et al. 2024, Task singular vectors (arXiv 2412.00081)"

    def __post_init__(self) -> None:
        if self.k is not None and self.k < 1:
            raise ValueError(f"k, the components kept of each adapter, is 1 or more, not {self.k}.")
        if self.k is not None and self.share:
            raise ValueError("k and share both say how many components to keep; give one of them.")

    def __call__(
        self, deltas: Deltas, weights: Weights, generators: Sequence[torch.Generator] = ()
    ) -> Matrix:
        parts = [self._kept(components(delta), len(deltas)) for delta in scaled(deltas, weights)]
        return assembled(parts, torch.cat([part.S for part in parts]))

    def _kept(self, part: Components, n: int) -> Components:
        rank = len(part.S)
        return part.first(math.ceil(rank / n) if self.share else self.k or rank)
