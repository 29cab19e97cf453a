"""What the methods that merge singular vectors share: numerical rank, and the nearest frame.

A delta of low rank has no singular vectors beyond its rank: those that a dense decomposition
returns there are arbitrary. So everything here stops at the numerical rank, which makes each of
these methods a function of the deltas alone and gives it one result in every space.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from loraprobe.lora.lowrank import RANK_TOLERANCE
from loraprobe.merging._method import EVERY_SPACE, Deltas, MergeMethod, Weights

# What is left, in float64, of terms that cancel: this share of their size.
ROUNDING = 1e-12


class Components(NamedTuple):
    """U [p, k], S [k] descending, Vh [k, q]: singular components that stand out of rounding."""

    U: Float[Tensor, "p k"]
    S: Float[Tensor, k]
    Vh: Float[Tensor, "k q"]

    def first(self, k: int) -> Components:
        """The k largest, or all if there are fewer."""
        return Components(self.U[:, :k], self.S[:k], self.Vh[:k])


@dataclass(frozen=True)
class SpectralMethod(MergeMethod):
    """A method made of singular vectors and values; weights multiply the deltas beforehand."""

    laws: ClassVar[frozenset[str]] = frozenset({"order", "gauge", "homogeneity"})
    lossless: ClassVar[frozenset[str]] = EVERY_SPACE

    def default_weights(self, n: int) -> tuple[float, ...]:
        """1 each: the deltas are brought together as they are, as the papers do."""
        return (1.0,) * n


def scaled(deltas: Deltas, weights: Weights) -> Deltas:
    """w_i dW_i: [n, p, q]."""
    return deltas * weights.to(deltas)[:, None, None]


def components(M: Float[Tensor, "p q"], size: float = 0.0) -> Components:
    """The singular value decomposition of M [p, q], cut at its numerical rank, which may be 0.

    Values up to RANK_TOLERANCE times the largest are rounding, and so are values up to ROUNDING
    times `size`, that of the terms whose difference or sum M is.
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


def assembled(parts: list[Components], sizes: Float[Tensor, K]) -> Float[Tensor, "p q"]:
    """U diag(sizes) V^T with U and V the frames nearest to all parts' vectors side by side."""
    U = nearest_frame(torch.cat([part.U for part in parts], 1))
    V = nearest_frame(torch.cat([part.Vh for part in parts], 0).mT)
    return (U * sizes) @ V.mT
