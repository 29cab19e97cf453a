"""Linear merges of DoRA adapters: exact, and a DoRA adapter again.

DoRA changes a weight to W_i = diag(c_i) (W0 + s_i B_i A_i), c_i = m_i / rownorm(W0 + s_i B_i A_i);
a plain LoRA has c_i = 1. A linear combination of the changes is

    W = W0 + sum_i w_i (W_i - W0) = diag(c) W0 + L
    c = 1 + sum_i w_i (c_i - 1)            L = sum_i w_i s_i diag(c_i) B_i A_i

which is DoRA's form with direction W0 + diag(1/c) L and magnitudes c * rownorm(W0 + diag(1/c) L):
the rank is at most the sum of the ranks. Cutting L to a rank (Eckart and Young) is best for W.

Where c is 0, nothing of W0's row is left in W, and where c is nearly 0, dividing by it would cost
the other rows their precision. Such a row gets c = 1 instead and its whole change as an update: one
more rank for each, and still exact. A row that becomes 0 has magnitude 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from loraprobe.composition.experts.scaled import change_products, ratio
from loraprobe.lora.lowrank import LowRank
from loraprobe.merging._compress import Compressed, compress_factors

SMALL_SCALE = 1e-3  # rows of W0 whose scale c is below this are not divided by it


@dataclass(frozen=True, eq=False)
class DoraMerge:
    """One module of a merged DoRA adapter.

    kept: L cut to the rank, its squared norms those of W - W0 and of what was lost. scale: c with
    its replacements, [out]. zero_rows: 1 for rows that become 0, [out]. inner: inner products of
    the W_i - W0, [n, n].
    """

    kept: Compressed
    scale: Float64[Tensor, out]
    zero_rows: Float64[Tensor, out]
    inner: Float64[Tensor, "n n"]

    def written(
        self, weight: Float[Tensor, "out in"], dtype: torch.dtype
    ) -> tuple[LowRank, Tensor]:
        """The update in its dtype, and the magnitudes [out] that belong to it, float32 or wider."""
        update = self.kept.update.to(torch.float64).folded()
        direction = LowRank(update.A, update.B / self.scale[:, None], 1.0).to(dtype)
        norms = 1 / ratio(direction, torch.ones(len(weight)), weight)
        wide = torch.promote_types(dtype, torch.float32)
        return direction, (self.scale * norms * (1 - self.zero_rows)).to(wide)

    def effective(self, direction: LowRank) -> LowRank:
        """What a written direction adds to diag(c) W0."""
        wide = direction.to(torch.float64)
        return LowRank(wide.A, wide.B * self.scale[:, None], wide.scaling)


def merge_dora(
    updates: Sequence[LowRank],
    magnitudes: Sequence[Tensor | None],
    coefficients: Sequence[float],
    weight: Float[Tensor, "out in"],
    rank: int | None,
) -> DoraMerge:
    """sum_i w_i (W_i - W0) of one module as a direction and a scale.

    updates: n low-rank updates; magnitudes: [out] each, None for a plain LoRA; coefficients: n
    weights, which may be negative; weight: W0 in any floating dtype.
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
    small = (c.abs() < SMALL_SCALE).nonzero()[:, 0]
    scale = c.clone()
    scale[small] = 1
    change = weight[small].to(torch.float64) * (c[small] - 1)[:, None]
    own = torch.zeros(len(weight), len(small), dtype=torch.float64)
    own[small, torch.arange(len(small))] = 1
    kept = compress_factors(LowRank(torch.cat([A, change]), torch.cat([B, own], 1)), rank)
    rows = weight[small].to(torch.float64) * c[small, None] + LowRank(A, B[small]).delta()
    zero_rows = torch.zeros_like(scale)
    zero_rows[small] = (rows == 0).all(1).to(zero_rows)
    inner = change_products(wide, ratios, weight)
    norm2 = float(w @ inner @ w)
    return DoraMerge(Compressed(kept.update, norm2, kept.lost2), scale, zero_rows, inner)
