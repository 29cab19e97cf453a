"""Spectral methods: combine the singular vectors of the deltas and choose the singular values.

A delta of low rank has no singular vectors beyond its rank: those that a dense decomposition
returns there are arbitrary. All methods here therefore stop at the numerical rank. So each of them
is a function of the deltas alone and has the same result in every space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from loraprobe.lora.lowrank import RANK_TOLERANCE
from loraprobe.merging import EVERY_SPACE, Deltas, Generators, Matrix, MergeMethod, Weights

# Rounding error, in float64, of a sum whose terms cancel, as a share of the terms' size.
ROUNDING = 1e-12


@dataclass(frozen=True)
class _Spectral(MergeMethod):
    """A method made of singular vectors and values; weights multiply the deltas beforehand."""

    laws = frozenset({"order", "gauge", "homogeneity"})
    lossless = EVERY_SPACE

    def default_weights(self, n: int) -> tuple[float, ...]:
        """1 each: the deltas are combined as they are, as in the papers."""
        return (1.0,) * n


@dataclass(frozen=True)
class Tsv(_Spectral):
    """TSV-Merge: task singular vectors side by side, whitened so that no task overlaps another.

    The singular vectors of all w_i dW_i are put side by side, all U_i and all V_i are replaced by
    the nearest orthonormal frame (Procrustes), and the singular values are kept. Each adapter keeps
    all components of its own numerical rank. The paper keeps min(out, in) / n, which is more than a
    delta of low rank has: the authors' code, and Core Space's (Panariello et al. 2025), keep all of
    it.

    Weights multiply the deltas, 1 each if none are given: the paper's alpha is a common weight.
    Vectors that several adapters share are counted once, where the authors' decompositions add
    arbitrary ones; so equal adapters with weights 1 give that adapter.
    """

    laws = frozenset({"identity", "order", "gauge", "homogeneity"})
    formula = (
        "dW = P_U diag(S_1..S_n) P_V^T, P_U, P_V = orthonormal nearest to [U_1..U_n], [V_1..V_n]"
    )
    paper = "Gargiulo et al. 2024, Task singular vectors (arXiv 2412.00081)"

    def __call__(self, deltas: Deltas, weights: Weights, generators: Generators = ()) -> Matrix:
        parts = [components(delta) for delta in weighted_deltas(deltas, weights)]
        return from_nearest_frames(parts, torch.cat([part.S for part in parts]))


@dataclass(frozen=True)
class IsoC(_Spectral):
    """Iso-C: every singular value of sum_i w_i dW_i replaced by their mean.

    The mean is over the numerical rank of the sum, and no direction beyond it is changed. The
    authors' code takes all min(out, in) values; those of a low-rank sum are mostly zero and have
    arbitrary vectors, to which it would give the same size as to the rest. The method here equals
    theirs on the core matrices of independent adapters (Core Space, Panariello et al. 2025), in
    every space. Weights are 1 each if none are given, which is the sum of the paper; its alpha is
    a common weight. Weak directions become as strong as all others, by definition.
    """

    formula = "dW = mean(S) U V^T, U diag(S) V^T = sum_i w_i dW_i"
    paper = "Marczak et al. 2025, Isotropic model merging (arXiv 2502.04959)"

    def __call__(self, deltas: Deltas, weights: Weights, generators: Generators = ()) -> Matrix:
        weighted = weighted_deltas(deltas, weights)
        found = components(weighted.sum(0), float(weighted.norm()))
        return (found.U * found.S.sum() / max(1, len(found.S))) @ found.Vh


@dataclass(frozen=True)
class IsoCts(_Spectral):
    """Iso-CTS: the leading directions of the sum and some of each delta alone, all equally strong.

    Of the rank R of sum_i w_i dW_i a share `common` is kept as the common space (0.8, the authors'
    default). What remains of each w_i dW_i outside its left vectors gives its leading components,
    the same number from each adapter, R in total; the common share is adjusted so that they divide
    evenly (as in the authors' code). All vectors are made orthogonal (Procrustes, as in `tsv`), and
    every singular value becomes the mean of those gathered.

    R is the numerical rank, where the authors' code has min(out, in): see `iso_c`. An adapter with
    too few components of its own gives those that it has, and the mean is over what was gathered. A
    single adapter gives `iso_c`. Weights are 1 each if none are given.
    """

    common: float = 0.8

    formula = (
        "dW = mean(S) P_U P_V^T over the top of sum_i w_i dW_i and of each w_i dW_i outside it"
    )
    paper = "Marczak et al. 2025, Isotropic model merging (arXiv 2502.04959)"

    def __post_init__(self) -> None:
        if not 0 <= self.common <= 1:
            raise ValueError(
                f"common, the common space's share of the rank, is from 0 to 1, not {self.common}."
            )

    def __call__(self, deltas: Deltas, weights: Weights, generators: Generators = ()) -> Matrix:
        weighted = weighted_deltas(deltas, weights)
        total = components(weighted.sum(0), float(weighted.norm()))
        rank, n = len(total.S), len(deltas)
        each = min(round((rank - int(rank * self.common)) / n), rank // n)
        shared = total.first(rank - each * n)
        parts = []
        for delta in weighted:
            own = delta - shared.U @ (shared.U.mT @ delta)
            parts.append(components(own, float(delta.norm())).first(each))
        parts.append(shared)
        gathered = torch.cat([part.S for part in parts])
        mean = gathered.sum() / max(1, len(gathered))
        return from_nearest_frames(parts, mean.expand(len(gathered)))


class Components(NamedTuple):
    """U [p, k], S [k] descending, Vh [k, q]: singular components above rounding."""

    U: Float[Tensor, "p k"]
    S: Float[Tensor, k]
    Vh: Float[Tensor, "k q"]

    def first(self, k: int) -> Components:
        """The k largest, or all if there are fewer."""
        return Components(self.U[:, :k], self.S[:k], self.Vh[:k])


def weighted_deltas(deltas: Deltas, weights: Weights) -> Deltas:
    """w_i dW_i: [n, p, q]."""
    return deltas * weights.to(deltas)[:, None, None]


def components(M: Float[Tensor, "p q"], size: float = 0.0) -> Components:
    """The singular value decomposition of M [p, q], cut at its numerical rank, which may be 0.

    Values up to RANK_TOLERANCE times the largest are rounding, and so are values up to ROUNDING
    times `size`, the norm of the terms whose sum or difference M is.
    """
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    least = max(RANK_TOLERANCE * float(S[0]), ROUNDING * size)
    return Components(U, S, Vh).first(int((least < S).sum()))


def nearest_frame(columns: Float[Tensor, "p K"]) -> Float[Tensor, "p K"]:
    """The partial isometry [p, K] nearest to given columns: P Q^T of their SVD P D Q^T.

    The orthogonal Procrustes solution where the columns are independent. Columns that depend on
    each other have no orthonormal neighbours: they share the directions that they span, two equal
    ones as one direction of length 1/sqrt(2) each.
    """
    if columns.shape[1] == 0:
        return columns
    P, _, Qh = components(columns)
    return P @ Qh


def from_nearest_frames(parts: list[Components], sizes: Float[Tensor, K]) -> Float[Tensor, "p q"]:
    """U diag(sizes) V^T with U and V the frames nearest to all parts' vectors side by side."""
    U = nearest_frame(torch.cat([part.U for part in parts], 1))
    V = nearest_frame(torch.cat([part.Vh for part in parts], 0).mT)
    return (U * sizes) @ V.mT
