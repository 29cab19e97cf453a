"""The spectrum of the sum of two updates, from their own and the cosines between them.

One Cholesky factorisation of r x r and the eigenvalues of one matrix of 2r x 2r replace two
eigendecompositions and an SVD for every pair of adapters in every module.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor


def square_of_sum(
    S: Float64[Tensor, "*p r"],
    T: Float64[Tensor, "*p r"],
    right: Float64[Tensor, "*p r r"],
    left: Float64[Tensor, "*p r r"],
) -> Float64[Tensor, "*p k k"]:
    """A symmetric matrix [..., 2 r, 2 r] whose eigenvalues are the energies of a sum of two SVDs.

    Only its lower triangle is filled.

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


def symmetric_eigenvalues(matrices: Float64[Tensor, "b k k"]) -> Float64[Tensor, "b k"]:
    """Eigenvalues, ascending, of many small symmetric matrices given by their lower triangles.

    On the CPU torch goes through a batch one problem at a time and splits each tiny problem over
    all cores, which is slower; here every core takes a part of the batch.
    """
    parts = [part.numpy() for part in matrices.tensor_split(max(1, torch.get_num_threads()))]
    if len(parts) == 1 or len(matrices) < 64:
        return torch.from_numpy(np.linalg.eigvalsh(matrices.numpy()))
    with ThreadPoolExecutor(len(parts)) as pool:
        return torch.from_numpy(np.concatenate(list(pool.map(np.linalg.eigvalsh, parts))))
