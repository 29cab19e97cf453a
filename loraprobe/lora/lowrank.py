"""One module's update, delta W = s B A, without forming delta W.

Results are computed from s, the Gram matrices A A^T and B^T B, and the SVD of an r x r core, so the
cost is O((out + in) r^2). They depend on the delta alone: the same delta in another basis
(A -> G A, B -> B G^-1) gives the same results.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

# Singular values below this share of the largest are rounding, since no stored LoRA is more precise
# than float32.
RANK_TOLERANCE = 1e-6
# Relative squared distance below which two updates are equal: far above rounding of float64 sums,
# far below the effect of a cast to bf16.
SAME = 1e-12


@dataclass(frozen=True, eq=False)
class LowRank:
    """One module's update, delta W = scaling * B @ A, with A: [r, in] and B: [out, r]."""

    A: Float[Tensor, "r in"]
    B: Float[Tensor, "out r"]
    scaling: float = 1.0

    @property
    def rank(self) -> int:
        """Number of stored components r, including those without effect."""
        return self.A.shape[0]

    @property
    def in_features(self) -> int:
        return self.A.shape[1]

    @property
    def out_features(self) -> int:
        return self.B.shape[0]

    def to(self, dtype: torch.dtype | None = None, device: torch.device | None = None) -> LowRank:
        """The same update with both factors in another dtype or on another device."""
        A, B = (factor.to(dtype=dtype, device=device) for factor in (self.A, self.B))
        return LowRank(A, B, self.scaling)

    def scaled(self, factor: float) -> LowRank:
        """factor * delta W, by a new scaling."""
        return LowRank(self.A, self.B, self.scaling * factor)

    def folded(self) -> LowRank:
        """The same update with scaling 1, the scaling multiplied into B."""
        return LowRank(self.A, self.B * self.scaling, 1.0)

    def delta(self) -> Float[Tensor, "out in"]:
        """The dense delta W: [out, in]."""
        return (self.B * self.scaling) @ self.A

    def norm(self) -> Float[Tensor, ""]:
        """Frobenius norm; ||dW||^2 = s^2 sum((B^T B) * (A A^T))."""
        return self.inner(self).clamp_min(0).sqrt()

    def inner(self, other: LowRank) -> Float[Tensor, ""]:
        """Frobenius inner product; <dW1, dW2> = s1 s2 sum((B1^T B2) * (A1 A2^T))."""
        core = (self.B.mT @ other.B) * (self.A @ other.A.mT)
        return core.sum((-2, -1)) * self.scaling * other.scaling

    def svd(self) -> tuple[Float[Tensor, "out k"], Float[Tensor, k], Float[Tensor, "k in"]]:
        """U [out, k], S [k] descending, Vh [k, in] with k = min(r, out, in).

        Exact up to rounding, also with dead or repeated components: QR gives orthonormal bases also
        where columns depend on each other, and the SVD of the core finds the directions without
        effect (their S is 0 and their U, Vh arbitrary).
        """
        Qb, Rb = torch.linalg.qr(self.B)
        Qa, Ra = torch.linalg.qr(self.A.mT)
        U, S, Vh = torch.linalg.svd((Rb @ Ra.mT) * self.scaling, full_matrices=False)
        return Qb @ U, S, Vh @ Qa.mT


def owners(ranks: Sequence[int]) -> Float64[Tensor, "R n"]:
    """1 where a component belongs to an update, else 0: [sum of ranks, n] in float64."""
    owner = torch.repeat_interleave(torch.arange(len(ranks)), torch.tensor(ranks))
    return torch.nn.functional.one_hot(owner, len(ranks)).to(torch.float64)


def same_update(inner: Float[Tensor, "n n"], i: int, j: int) -> bool:
    """Whether updates i and j are equal and not zero, from the inner products of all."""
    energy = inner[i, i] + inner[j, j]
    return bool(energy > 0 and energy - 2 * inner[i, j] <= SAME * energy)
