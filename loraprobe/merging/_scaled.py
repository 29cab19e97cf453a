"""Linear merges of DoRA adapters: exact, and a DoRA adapter again.

DoRA changes a weight to W_i = diag(c_i) (W0 + s_i B_i A_i), c_i = m_i / rownorm(W0 + s_i B_i A_i);
a plain LoRA has c_i = 1. A linear combination of the changes is

    W = W0 + sum_i w_i (W_i - W0) = diag(c) W0 + L
    c = 1 + sum_i w_i (c_i - 1)            L = sum_i w_i s_i diag(c_i) B_i A_i

which is DoRA's form with direction W0 + diag(1/c) L and magnitudes c * rownorm(W0 + diag(1/c) L):
the rank is at most the sum of the ranks. Cutting L to a rank (Eckart and Young) is best for W.

Where c is 0, W has nothing of W0's row left, and where it is nearly 0, dividing by it would cost
the other rows their precision. Such a row gets c = 1 instead and the whole of its change as an
update: one more rank for each, exact likewise. A row that becomes 0 has magnitude 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from loraprobe.composition.experts.scaled import ratio
from loraprobe.errors import CompatibilityError
from loraprobe.lowrank import LowRank
from loraprobe.merging._compress import Compressed, compress_factors

Weight = Callable[[str], Tensor]  # module path -> W0 [out, in]

FADED = 1e-3  # rows of W0 that are scaled by less than this are not divided by it
ROWS = 1 << 22  # entries of a weight in float64 at one time


@dataclass(frozen=True, eq=False)
class ScaledMerge:
    """One module of a merged DoRA adapter.

    kept: L cut to the rank, its squared norms those of W - W0 and of what was lost. scale: c with
    its replacements, [out]. inner: <W_i - W0, W_j - W0>, [n, n].
    """

    kept: Compressed
    scale: Float64[Tensor, out]
    gone: Float64[Tensor, out]
    inner: Float64[Tensor, "n n"]

    def written(
        self, weight: Float[Tensor, "out in"], dtype: torch.dtype
    ) -> tuple[LowRank, Tensor]:
        """The update in its dtype, and the magnitudes [out] that belong to it, float32 or wider."""
        update = self.kept.update.to(torch.float64).folded()
        direction = LowRank(update.A, update.B / self.scale[:, None], 1.0).to(dtype)
        norms = torch.cat([row.norm(dim=1) for row in _rows(weight, direction)])
        wide = torch.promote_types(dtype, torch.float32)
        return direction, (self.scale * norms * (1 - self.gone)).to(wide)

    def effective(self, direction: LowRank) -> LowRank:
        """What a written direction adds to diag(c) W0."""
        wide = direction.to(torch.float64)
        return LowRank(wide.A, wide.B * self.scale[:, None], wide.scaling)


def merge_scaled(
    updates: Sequence[LowRank],
    magnitudes: Sequence[Tensor | None],
    coefficients: Sequence[float],
    weight: Float[Tensor, "out in"],
    rank: int | None,
) -> ScaledMerge:
    """sum_i w_i (W_i - W0) of one module as a direction and a scale.

    updates: n low-rank updates; magnitudes: [out] each, None for a plain LoRA; coefficients: n
    weights, negative ones too; weight: W0, streamed by the caller, in any floating dtype.
    """
    wide = [update.to(torch.float64).folded() for update in updates]
    ratios = torch.stack(
        [
            torch.ones(len(weight), dtype=torch.float64) if m is None else ratio(u, m, weight)
            for u, m in zip(wide, magnitudes, strict=True)
        ]
    )
    w = torch.tensor(coefficients, dtype=torch.float64)
    c = 1 + w @ (ratios - 1)
    A = torch.cat([u.A for u in wide])
    B = torch.cat([u.B * (w[i] * ratios[i])[:, None] for i, u in enumerate(wide)], 1)
    faded = (c.abs() < FADED).nonzero()[:, 0]
    scale = c.clone()
    scale[faded] = 1
    change = weight[faded].to(torch.float64) * (c[faded] - 1)[:, None]
    own = torch.zeros(len(weight), len(faded), dtype=torch.float64)
    own[faded, torch.arange(len(faded))] = 1
    whole = LowRank(torch.cat([A, change]), torch.cat([B, own], 1))
    kept = compress_factors(whole, rank)
    gone = torch.zeros_like(scale)
    gone[faded] = _vanished(LowRank(A, B[faded]), weight[faded], c[faded]).to(gone)
    moved, inner = _changes(wide, ratios, c, LowRank(A, B), weight)
    return ScaledMerge(Compressed(kept.update, moved, kept.lost2), scale, gone, inner)


def check_weight(path: str, update: LowRank, weight: Tensor) -> None:
    """Raises CompatibilityError where a base's weight is not of a module's shape."""
    if tuple(weight.shape) != (update.out_features, update.in_features):
        raise CompatibilityError(
            f"Module {path} is {[update.out_features, update.in_features]} in the adapters and "
            f"{list(weight.shape)} in the base; give the base that they were trained on."
        )


def _vanished(update: LowRank, weight: Float[Tensor, "k in"], c: Float64[Tensor, k]) -> Tensor:
    """Which of these rows of diag(c) W0 + L are 0: [k]."""
    rows = weight.to(torch.float64) * c[:, None] + update.delta()
    return (rows == 0).all(1)


def _rows(weight: Float[Tensor, "out in"], update: LowRank) -> Iterator[Float64[Tensor, "_ in"]]:
    """W0 + dW in float64, a block of rows at a time."""
    wide = update.to(torch.float64).folded()
    step = max(1, ROWS // max(1, weight.shape[1]))
    for start in range(0, len(weight), step):
        yield weight[start : start + step].to(torch.float64) + wide.B[start : start + step] @ wide.A


def _changes(
    updates: Sequence[LowRank],
    ratios: Float64[Tensor, "n out"],
    c: Float64[Tensor, out],
    merged: LowRank,
    weight: Float[Tensor, "out in"],
) -> tuple[float, Float64[Tensor, "n n"]]:
    """||W - W0||_F^2, and the inner products of the W_i - W0, [n, n], by blocks of rows."""
    inner = torch.zeros(len(updates), len(updates), dtype=torch.float64)
    moved = 0.0
    step = max(1, ROWS // max(1, weight.shape[1]) // (len(updates) + 1))
    for start in range(0, len(weight), step):
        rows = slice(start, start + step)
        W0 = weight[rows].to(torch.float64)
        each = torch.stack(
            [
                (W0 * (r[rows] - 1)[:, None] + (u.B[rows] * r[rows, None]) @ u.A).flatten()
                for u, r in zip(updates, ratios, strict=True)
            ]
        )
        inner += each @ each.mT
        moved += float((W0 * (c[rows] - 1)[:, None] + merged.B[rows] @ merged.A).square().sum())
    return moved, inner
