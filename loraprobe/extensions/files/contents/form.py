"""The form of what adapters and rounding leave of a tensor's change, which tells its cause."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from loraprobe.extensions.files.contents.fit import Fit, norm2
from loraprobe.extensions.files.contents.records import Rest

DIRECTIONS = 256  # of a sketch, by whose singular values a rest is an adapter's or everywhere
FEW = 0.1  # of a rest: so little left of it explains it
BLOCK = 64  # entries in a row that have at most 16 values if the base was rounded to 4 bits
LEVELS = 0.1  # of a block's range: all but its 15 largest gaps; above 0.25 without such values


def _bits(weights: Tensor) -> int:
    """4 where a block of 64 entries has at most 16 values, 8 where a row has whole multiples of
    1/127 of its largest one, else 0."""
    flat = weights.reshape(-1)
    blocks = flat[: len(flat) // BLOCK * BLOCK].view(-1, BLOCK)[:4096].sort(dim=1).values
    if len(blocks):
        within = blocks.diff(dim=1).sort(dim=1).values[:, : BLOCK - 16].sum(dim=1)
        if float((within / (blocks[:, -1] - blocks[:, 0]).clamp_min(1e-30)).median()) < LEVELS:
            return 4
    rows = weights[:512]
    levels = rows / (rows.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127)
    small = levels[levels.abs() <= 20]
    off = (small - small.round()).square().mean().sqrt() if len(small) else torch.tensor(1.0)
    return 8 if float(off) < 0.15 else 0  # 0.29 without levels


def form_of(fit: Fit, weights: Sequence[float], crossed: Sequence[Tensor]) -> Rest:
    """The form of the rest of a matrix, beyond the changes with these weights.

    crossed: products of one adapter's B and another's A.
    """
    wanted = fit.sum(weights)
    R, W0 = (fit.W - wanted).view(fit.shape), fit.W0.view(fit.shape)
    draw = torch.Generator().manual_seed(0)
    k = min(DIRECTIONS, *fit.shape)
    sketch = R @ torch.randn(fit.shape[1], k, generator=draw, dtype=R.dtype)
    values = torch.linalg.svdvals(sketch)
    P, before = (one.view(fit.shape) for one in (fit.rounded(wanted), fit.rounded(fit.W0)))
    W, wanted = fit.W.view(fit.shape), wanted.view(fit.shape)
    moves = (before != P) & ((wanted - W0).abs() > 4 * fit.eps * W0.abs())
    still = moves & (before == W)
    return Rest(
        size=math.sqrt(norm2(R) / max(norm2(W0), 1e-300)),
        full=bool(values[k // 2] > 0.1 * values[0]),
        bits=_bits(R + W0),
        zeros=float(still.count_nonzero() / moves.count_nonzero().clamp_min(1)),
        elected=_elected(fit),
        crossed=_explained_with(fit, [one.reshape(-1) for one in crossed]),
        turned=fit.narrow is None and _explained_with(fit, [fit.W0]),
    )


def _elected(fit: Fit) -> bool:
    """Whether the changes explain what their signs agree on, and not the other entries."""
    if len(fit.deltas) < 2:
        return False
    before = fit.rounded(fit.W0)
    moves = [fit.rounded(fit.W0 + delta).sub_(before).sign_() for delta in fit.deltas]
    agree = (moves[0] != 0) & torch.stack([one == moves[0] for one in moves]).all(0)
    if not agree.any() or agree.all():
        return False
    one, other = (
        fit.of(fit.W[at], fit.W0[at], [delta[at] for delta in fit.deltas]) for at in (agree, ~agree)
    )
    left, right = (some.searched().rest ** 2 / len(some.W) for some in (one, other))
    return left <= FEW * right


def _explained_with(fit: Fit, more: Sequence[Tensor]) -> bool:
    """Whether a sum of the changes and of these explains nearly everything."""
    if not more:
        return False
    both = fit.of(fit.W, fit.W0, [*fit.deltas, *more])
    return both.searched().rest <= FEW * fit.searched().rest
