"""The space of a merge: how the deltas of one module become matrices of one shape.

full   M_i = dW_i, [out, in]. The textbook definition of every method; dense.
core   M_i = U^T dW_i V, [p, q] with p, q <= the sum of ranks, U and V orthonormal bases of the
       joint column and row space of all deltas. Small, and nothing is lost: dW_i = U M_i V^T.
knots  M_i = U^T dW_i, [p, in]: the shared left basis only, dW_i = U M_i. The space of KnOTS.

A method f is lossless in a space if f(U M V^T) = U f(M) V^T; then the space changes only the cost.
Otherwise it is another method there: TIES trims coordinates, and these differ between spaces.

The bases are those of the singular value decompositions of [dW_1 | dW_2 | ...] and of
[dW_1; dW_2; ...] with fixed signs. They depend on the deltas alone: neither on the order of the
adapters nor on the basis in which factors are stored. If the concatenation has equal singular
values, no basis is canonical, and the result of an elementwise method in `core` depends on the
basis chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from loraprobe.errors import UsageError
from loraprobe.formatting import listing
from loraprobe.lora.lowrank import RANK_TOLERANCE, LowRank


@dataclass(frozen=True, eq=False)
class Stacked:
    """The deltas of one module in a space, and the way back.

    matrices: [n, p, q]; left: U [out, p] and right: V [in, q], None for the full side of a space.
    """

    matrices: Float[Tensor, "n p q"]
    left: Float[Tensor, "out p"] | None = None
    right: Float[Tensor, "in q"] | None = None

    def back(self, merged: Float[Tensor, "p q"]) -> LowRank | Float[Tensor, "out in"]:
        """A merged matrix [p, q] as the update U M V^T, or as itself [out, in] if dense."""
        if self.left is None:
            return merged
        left = self.left.to(merged)
        if self.right is None:
            return LowRank(merged, left)
        return LowRank(self.right.mT.to(merged), left @ merged)


def full(updates: Sequence[LowRank]) -> Stacked:
    """The dense deltas themselves: n matrices of [out, in].

    The textbook definition of every method; it takes the most time and memory.
    """
    first = updates[0]
    deltas = first.A.new_empty(len(updates), first.out_features, first.in_features)
    for update, delta in zip(updates, deltas, strict=True):
        folded = update.folded()
        torch.mm(folded.B, folded.A, out=delta)
    return Stacked(deltas)


def core(updates: Sequence[LowRank]) -> Stacked:
    """Both sides projected on the canonical joint bases of the deltas.

    U are the left singular vectors of [dW_1 | dW_2 | ...], V the right ones of [dW_1; dW_2; ...].
    So the matrices are as small as the sum of ranks and no delta loses anything. An elementwise
    method is another method here than in `full`, since other entries are compared.
    """
    left = left_basis(updates)
    right = left_basis([LowRank(u.B.mT, u.A.mT, u.scaling) for u in updates])  # of dW_i^T
    matrices = [(left.mT @ update.folded().B) @ (update.A @ right) for update in updates]
    return Stacked(torch.stack(matrices), left, right)


def knots(updates: Sequence[LowRank]) -> Stacked:
    """The output side projected on the canonical joint basis of the deltas' columns.

    The paper (KnOTS) decomposes [dW_1 | dW_2 | ...] = U S [V_1 | ...]^T. Its text merges the V_i
    and multiplies by U S afterwards; its code merges S V_i^T, which are the matrices here. The two
    differ only where entries of different rows are compared, as in trimming. Here every module is
    trimmed separately; their code trims all modules together.
    """
    left = left_basis(updates)
    matrices = [(left.mT @ update.folded().B) @ update.A for update in updates]
    return Stacked(torch.stack(matrices), left)


class Space(NamedTuple):
    """One space: its function, and what `loraprobe methods` prints about it."""

    stacked: Callable[[Sequence[LowRank]], Stacked]
    formula: str
    paper: str


SPACES = {
    "full": Space(full, "M_i = dW_i", "-"),
    "core": Space(
        core,
        "M_i = U^T dW_i V, dW = U f(M) V^T",
        "Panariello et al. 2025, Core Space (arXiv 2509.17786)",
    ),
    "knots": Space(
        knots, "M_i = U^T dW_i, dW = U f(M)", "Stoica et al. 2024, KnOTS (arXiv 2410.19735)"
    ),
}


def space_named(name: str) -> Space:
    """The space of that name. Raises UsageError with the known names."""
    if name in SPACES:
        return SPACES[name]
    raise UsageError(f"Unknown space {name!r}:", f"there are {listing(SPACES)}.")


def left_basis(updates: Sequence[LowRank]) -> Float[Tensor, "out p"]:
    """The left singular vectors of [dW_1 | dW_2 | ...], as many as its numerical rank.

    There is at least one, and the largest entry of each is positive. With A_i^T = Q_i R_i this
    matrix is [s_1 B_1 R_1^T | ...] blockdiag(Q_i^T), so they are the left singular vectors of its
    first factor, [out, sum r].
    """
    folded = [update.folded() for update in updates if update.rank]
    columns = [u.B @ torch.linalg.qr(u.A.mT, mode="r").R.mT for u in folded]
    U, S, _ = torch.linalg.svd(torch.cat(columns, -1), full_matrices=False)
    rank = max(1, int((RANK_TOLERANCE * S[0] < S).sum()))
    U = U[:, :rank]
    largest = U.gather(0, U.abs().argmax(0, keepdim=True))
    return U * torch.where(largest < 0, -1.0, 1.0).to(U)
