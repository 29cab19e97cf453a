"""Edits of a linear store W [out, in]: what has to be added so that given keys give given values.

Keys K [N, in] and changes R [N, out] (new value - old value) are rows. An edit E is exact when
E k_i = r_i for all i, that is E K^T = R^T. So rank E >= rank R: the *residual's* rank bounds what
an exact edit needs from below, and the least edit R^T pinv(K^T) attains it. It exists whenever the
keys do not contradict each other (independent keys never do).
"""

from __future__ import annotations

import torch
from torch import Tensor

RELATIVE = 1e-9  # singular values below this share of the largest count as zero (float64)


def dual(keys: Tensor, others: Tensor | None = None, ridge: float = 1e-3) -> Tensor:
    """The row u_i with which a rank-one edit change u_i^T reads its key: u_i . k_i = 1. [N, in]

    Without `others` it is k / ||k||^2, the theory's edit of one fact. With the keys of other
    prompts [M, in] it is C^-1 k / (k . C^-1 k) with C their second moment plus `ridge` times its
    mean eigenvalue: still exact, and least disturbing for them in the mean.
    """
    towards = keys
    if others is not None:
        moment = others.T @ others / len(others)
        moment = moment + ridge * moment.diagonal().mean() * torch.eye(len(moment)).to(moment)
        towards = torch.linalg.solve(moment, keys.T).T
    return towards / (towards * keys).sum(-1, keepdim=True)


def exact(keys: Tensor, changes: Tensor) -> Tensor:
    """The edit of least norm that gives every key its change. [N, in], [N, out] -> [out, in]"""
    return changes.T @ torch.linalg.pinv(keys.T, rtol=RELATIVE)


def of_rank(keys: Tensor, changes: Tensor, rank: int) -> Tensor:
    """The edit of at most this rank with the least total squared error over the keys.

    For independent keys: the exact edit projected on the leading directions of the changes.
    """
    leading = torch.linalg.svd(changes.T, full_matrices=False).U[:, :rank]
    return leading @ (leading.T @ exact(keys, changes))


def rank(matrix: Tensor) -> int:
    """How many singular values exceed `RELATIVE` times the largest."""
    return int(torch.linalg.matrix_rank(matrix, rtol=RELATIVE))


def rank_of_energy(matrix: Tensor, share: float = 0.99) -> int:
    """How many directions hold this share of the squared norm."""
    energy = torch.linalg.svdvals(matrix).pow(2).cumsum(0)
    return int((energy < share * energy[-1] * (1 - 1e-12)).sum()) + 1
