"""Gram matrices of many adapters, one module at a time.

All that diagnostics need of n updates s_i B_i A_i of one module (norms, inner products, spectra,
angles between their spaces) follows from two matrices of size (n r) x (n r): the Gram matrix of
all rows of all A_i and that of all columns of all B_i. `GramMatrices` is a batch of such modules;
`gram_batches` makes them.

A Gram matrix holds squares: in float64 it resolves directions of a factor down to 3e-7 of its
largest, about the precision of a factor stored in float32. Rows of A and columns of B are scaled to
length one first, so that their sizes cost no precision.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from loraprobe.lora.lowrank import RANK_TOLERANCE

Side = Literal["in", "out"]

# Directions of a factor below this share of its largest, squared, are rounding.
GRAM_TOLERANCE = 1e-13
# Pairs of updates whose sums are decomposed together, so that their matrices stay in the cache.
PAIRS = 1 << 11


class Spectrum(NamedTuple):
    """The SVD of each update, its singular vectors as combinations of the stored factors.

    S: [m, n, r] descending; left: [m, n, r, r] with U = B @ left; right: [m, n, r, r] with
    Vh = right @ A; rank: [m, n], the number of singular values above rounding. Vectors beyond the
    rank are zero.
    """

    S: Float64[Tensor, "m n r"]
    left: Float64[Tensor, "m n r r"]
    right: Float64[Tensor, "m n r r"]
    rank: Int[Tensor, "m n"]


@dataclass(frozen=True, eq=False)
class GramMatrices:
    """m modules of n adapters. r is the largest rank; smaller ones are padded with zeros.

    grams_in: [m, n, r, n, r], A A^T of all adapters; grams_out: the same of B^T B; scaling,
    rank (as stored, 0 where an adapter lacks the module), finite: [m, n]; shape: [m, n, 2] as
    (out, in). A module with NaN or infinities counts as zero here and is not `finite`. Tensors
    are float64.
    """

    paths: tuple[str, ...]
    grams_in: Float64[Tensor, "m n r n r"]
    grams_out: Float64[Tensor, "m n r n r"]
    scaling: Float64[Tensor, "m n"]
    rank: Int[Tensor, "m n"]
    shape: Int[Tensor, "m n 2"]
    finite: Bool[Tensor, "m n"]

    @property
    def present(self) -> Bool[Tensor, "m n"]:
        """Which adapter adapts which module: [m, n]."""
        return self.rank > 0

    @functools.cached_property
    def comparable(self) -> Bool[Tensor, "m n n"]:
        """Which pairs have no module in two different shapes: [m, n, n]."""
        return (self.shape[:, :, None] == self.shape[:, None, :]).all(-1) | ~self.both

    @functools.cached_property
    def both(self) -> Bool[Tensor, "m n n"]:
        """Which pairs both adapt a module: [m, n, n]."""
        return self.present[:, :, None] & self.present[:, None, :]

    @functools.cached_property
    def inner(self) -> Float64[Tensor, "m n n"]:
        """<dW_i, dW_j> = s_i s_j sum((B_i^T B_j) * (A_i A_j^T)): [m, n, n]."""
        products = (self.grams_in * self.grams_out).sum((2, 4))
        return products * self.scaling[:, :, None] * self.scaling[:, None, :]

    @functools.cached_property
    def square(self) -> Float64[Tensor, "m n"]:
        """||dW_i||_F^2: [m, n]."""
        return self.inner.diagonal(dim1=1, dim2=2).clamp_min(0)

    @functools.cached_property
    def spectrum(self) -> Spectrum:
        """Singular values of every update, and its singular vectors in terms of the factors."""
        own_in, own_out = own_blocks(self.grams_in), own_blocks(self.grams_out)
        a, b = factor_lengths(own_in), factor_lengths(own_out)
        root_in, root_out = unit_root(own_in, a), unit_root(own_out, b)
        middle = self.scaling[..., None] * a * b
        U, S, Vh = torch.linalg.svd(root_out @ (middle[..., None] * root_in.mT))
        kept = (RANK_TOLERANCE * S[..., :1] < S) & (S > 0)
        inverse = torch.where(kept, 1 / S, 0.0)
        # Vh = S^-1 U^T dW and U = dW V S^-1, with B and A in the bases of the roots.
        right = inverse[..., None] * (U.mT @ root_out) * (self.scaling[..., None] * b)[..., None, :]
        left = (
            (self.scaling[..., None] * a)[..., None] * (root_in.mT @ Vh.mT) * inverse[..., None, :]
        )
        return Spectrum(S, left, right, kept.sum(-1))

    def overlap(self, side: Side) -> Float64[Tensor, "m n n"]:
        """||Q_i^T Q_j||_F^2 of the row ("in") or column ("out") spaces of dW: [m, n, n].

        The sum of squared cosines of the principal angles; i = j gives the numerical rank.
        """
        cosines = self.cosines_in if side == "in" else self.cosines_out
        return cosines.square().sum((-2, -1))

    @functools.cached_property
    def cosines_in(self) -> Float64[Tensor, "m n n r r"]:
        """V_i^T V_j of the right singular vectors of every two updates: [m, n, n, r, r]."""
        return _between(self.spectrum.right, self.grams_in)

    @functools.cached_property
    def cosines_out(self) -> Float64[Tensor, "m n n r r"]:
        """U_i^T U_j of the left singular vectors of every two updates: [m, n, n, r, r]."""
        return _between(self.spectrum.left.mT, self.grams_out)

    def sum_energies(
        self, first: Sequence[int] | Tensor, second: Sequence[int] | Tensor
    ) -> Float64[Tensor, "m p k"]:
        """Squared singular values of dW_i + dW_j, descending, for p pairs (i, j): [m, p, 2 r].

        Values that a Gram matrix cannot resolve are 0.
        """
        i, j = torch.as_tensor(first), torch.as_tensor(second)
        m, r, step = len(self.scaling), self.grams_in.shape[2], max(1, PAIRS // len(self.scaling))
        found = torch.empty(m, len(i), 2 * r, dtype=torch.float64)
        S = self.spectrum.S
        for part in range(0, len(i), step):
            a, b = i[part : part + step], j[part : part + step]
            square = _square_of_sum(
                S[:, a], S[:, b], self.cosines_in[:, a, b], self.cosines_out[:, a, b]
            )
            found[:, part : part + step] = torch.linalg.eigvalsh(square).flip(-1)
        return torch.where(found > GRAM_TOLERANCE * found[..., :1], found, 0.0)


def _between(
    basis: Float64[Tensor, "m n k r"], gram: Float64[Tensor, "m n r n r"]
) -> Float64[Tensor, "m n n k k"]:
    """Inner products of `basis` times the factors of every two adapters: [m, n, n, k, k]."""
    m, n, k, r = basis.shape
    half = (basis @ gram.view(m, n, r, n * r)).view(m, n * k, n, r)
    whole = half.transpose(1, 2) @ basis.mT  # [m, j, (i k), l]
    return whole.view(m, n, n, k, k).transpose(1, 2)


def own_blocks(grams: Float64[Tensor, "m n r n r"]) -> Float64[Tensor, "m n r r"]:
    """The diagonal blocks of [m, n, r, n, r]: [m, n, r, r]."""
    return grams.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)


def factor_lengths(gram: Float64[Tensor, "*batch r r"]) -> Float64[Tensor, "*batch r"]:
    """Lengths of the vectors of a Gram matrix: [..., r]."""
    return gram.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()


def unit_root(
    gram: Float64[Tensor, "*batch r r"], lengths: Float64[Tensor, "*batch r"]
) -> Float64[Tensor, "*batch r r"]:
    """R with R^T R the Gram matrix of the vectors scaled to length one: [..., r, r].

    Directions that are only rounding are zero in R, so that dependent factors are allowed.
    """
    inverse = torch.where(lengths > 0, 1 / lengths, 0.0)
    values, vectors = torch.linalg.eigh(inverse[..., None] * gram * inverse[..., None, :])
    floor = GRAM_TOLERANCE * values[..., -1:].clamp_min(0)
    return torch.where(values > floor, values, 0.0).sqrt()[..., None] * vectors.mT


def _square_of_sum(
    S: Float64[Tensor, "*p r"],
    T: Float64[Tensor, "*p r"],
    right: Float64[Tensor, "*p r r"],
    left: Float64[Tensor, "*p r r"],
) -> Float64[Tensor, "*p k k"]:
    """A symmetric matrix [..., 2 r, 2 r] whose eigenvalues are the energies of a sum of two SVDs.

    Only its lower triangle is filled. One Cholesky factorisation of r x r and these eigenvalues
    replace two eigendecompositions and an SVD for every pair of adapters in every module.

    dW_i + dW_j = [U_i U_j] D [V_i V_j]^T with D = diag(S, T). Its squared singular values are the
    eigenvalues of L^T (D G D) L, where G holds the cosines of [V_i V_j] (`right` off its
    diagonal) and L L^T those of [U_i U_j]: L = [[1, 0], [left^T, K]], K K^T = 1 - left^T left.
    """
    K = _remainder(left)
    cross = T[..., :, None] * right.mT * S[..., None, :]
    below = cross + T.square()[..., None] * left.mT
    upper = left @ below
    upper += cross.mT @ left.mT
    upper.diagonal(dim1=-2, dim2=-1).add_(S.square())
    lower = K.mT @ torch.cat([below, T.square()[..., None] * K], -1)
    return torch.cat([torch.cat([upper, torch.zeros_like(upper)], -1), lower], -2)


def _remainder(cosines: Float64[Tensor, "*p r r"]) -> Float64[Tensor, "*p r r"]:
    """K with K K^T = 1 - C^T C; negative eigenvalues, from rounding where spaces meet, become 0."""
    rest = torch.eye(cosines.shape[-1], dtype=cosines.dtype) - cosines.mT @ cosines
    K, failed = torch.linalg.cholesky_ex(rest)
    where = failed != 0
    if where.any():
        values, vectors = torch.linalg.eigh(rest[where])
        K[where] = vectors * values.clamp_min(0).sqrt()[..., None, :]
    return K
