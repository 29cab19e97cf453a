"""The algebra of one module's update, delta W = s B A, without ever forming delta W.

All methods take a single update (A: [r, in], B: [out, r]) or a batch of updates of one shape
(A: [m, r, in], B: [m, out, r], scaling: [m]); "..." in a shape is that optional batch.
Everything is derived from s, the Gram matrices A A^T and B^T B, and the SVD of an r x r core, so
the cost is O((out + in) r^2) and the answer is that of the delta: writing the same delta in
another basis (A -> G A, B -> B G^-1) changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

# Singular values below this share of the largest are rounding: the factors' own precision
# decides, and no stored LoRA is finer than float32.
RANK_TOLERANCE = 1e-6
# Relative squared distance below which two updates are one: far above rounding of float64 sums,
# far below what a cast to bf16 does.
SAME = 1e-12


@dataclass(frozen=True, eq=False)
class LowRank:
    """One module's update, delta W = scaling * B @ A.

    A: [..., r, in], B: [..., out, r], scaling: a number, or a tensor of the batch's shape.
    """

    A: Float[Tensor, "*batch r in"]
    B: Float[Tensor, "*batch out r"]
    scaling: float | Float[Tensor, "*batch"] = 1.0

    @property
    def rank(self) -> int:
        """Number of stored components r, dead ones included."""
        return self.A.shape[-2]

    @property
    def in_features(self) -> int:
        return self.A.shape[-1]

    @property
    def out_features(self) -> int:
        return self.B.shape[-2]

    def to(self, dtype: torch.dtype | None = None, device: torch.device | None = None) -> LowRank:
        """The same update with both factors in another dtype or on another device."""
        scaling = self.scaling
        if isinstance(scaling, Tensor):
            scaling = scaling.to(dtype=dtype, device=device)
        return LowRank(
            self.A.to(dtype=dtype, device=device), self.B.to(dtype=dtype, device=device), scaling
        )

    def scaled(self, factor: float) -> LowRank:
        """factor * delta W; costs nothing."""
        return LowRank(self.A, self.B, self.scaling * factor)

    def folded(self) -> LowRank:
        """The same update with scaling 1, the scaling multiplied into B."""
        return LowRank(self.A, self.B * _column(self.scaling), 1.0)

    def delta(self) -> Float[Tensor, "*batch out in"]:
        """The dense delta W: [..., out, in]. Only where a definition needs it."""
        return (self.B * _column(self.scaling)) @ self.A

    def norm(self) -> Float[Tensor, "*batch"]:
        """Frobenius norm [...]; ||dW||^2 = s^2 sum((B^T B) * (A A^T))."""
        return self.inner(self).clamp_min(0).sqrt()

    def inner(self, other: LowRank) -> Float[Tensor, "*batch"]:
        """Frobenius inner product [...]; <dW1, dW2> = s1 s2 sum((B1^T B2) * (A1 A2^T))."""
        core = (self.B.mT @ other.B) * (self.A @ other.A.mT)
        return core.sum((-2, -1)) * self.scaling * other.scaling

    def svd(
        self,
    ) -> tuple[
        Float[Tensor, "*batch out k"], Float[Tensor, "*batch k"], Float[Tensor, "*batch k in"]
    ]:
        """U [..., out, k], S [..., k] descending, Vh [..., k, in] with k = min(r, out, in).

        Exact up to rounding also with dead or repeated components: orthonormal bases come from
        QR, which stays orthonormal where columns depend on each other, and the core's SVD sorts
        out which directions carry nothing (their S is 0 and their U, Vh arbitrary).
        """
        Qb, Rb = torch.linalg.qr(self.B)
        Qa, Ra = torch.linalg.qr(self.A.mT)
        core = (Rb @ Ra.mT) * _column(self.scaling)
        U, S, Vh = torch.linalg.svd(core, full_matrices=False)
        return Qb @ U, S, Vh @ Qa.mT

    def singular_values(self) -> Float[Tensor, "*batch k"]:
        """Singular values of delta W, descending: [..., min(r, out, in)]."""
        Rb = torch.linalg.qr(self.B, mode="r").R
        Ra = torch.linalg.qr(self.A.mT, mode="r").R
        return torch.linalg.svdvals((Rb @ Ra.mT) * _column(self.scaling))

    def numerical_rank(self, tolerance: float = RANK_TOLERANCE) -> Int[Tensor, "*batch"]:
        """How many singular values exceed tolerance times the largest: [...] integers."""
        S = self.singular_values()
        return ((tolerance * S[..., :1] < S) & (S > 0)).sum(-1)

    def truncated(self, rank: int) -> tuple[LowRank, Float[Tensor, "*batch"]]:
        """The best approximation of that rank, and its error ||dW - dW_k||_F [...].

        Eckart-Young. The result is balanced: A = sqrt(S) Vh, B = U sqrt(S), scaling 1. A rank
        above k keeps everything.
        """
        U, S, Vh = self.svd()
        root = S[..., :rank].sqrt()
        kept = LowRank(
            root[..., :, None] * Vh[..., :rank, :], U[..., :, :rank] * root[..., None, :]
        )
        return kept, S[..., rank:].square().sum(-1).sqrt()


def owners(ranks: Sequence[int]) -> Float[Tensor, "R n"]:
    """1 where a component belongs to an update, else 0: [sum of ranks, n] in float64."""
    owner = torch.repeat_interleave(torch.arange(len(ranks)), torch.tensor(ranks))
    return torch.nn.functional.one_hot(owner, len(ranks)).to(torch.float64)


def same_update(inner: Float[Tensor, "n n"], i: int, j: int) -> bool:
    """Whether two updates that are not zero are one, from the inner products of all."""
    energy = inner[i, i] + inner[j, j]
    return bool(energy > 0 and energy - 2 * inner[i, j] <= SAME * energy)


def _column(
    scaling: float | Float[Tensor, "*batch"],
) -> float | Float[Tensor, "*batch 1 1"]:
    """A scaling that broadcasts over the last two dimensions."""
    return scaling[..., None, None] if isinstance(scaling, Tensor) else scaling
