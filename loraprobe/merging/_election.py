"""The last two steps of TIES: elect a sign per entry, fuse the entries that have it."""

from __future__ import annotations

from typing import Literal

import torch

from loraprobe.merging._method import Deltas, Matrix, Weights

Election = Literal["total", "frequency"]
Voters = Literal["plain", "weighted"]
Divisor = Literal["count", "weights", "none"]


def elect(
    deltas: Deltas,
    weights: Weights,
    election: Election = "total",
    voters: Voters = "weighted",
    divisor: Divisor = "weights",
    factor: float = 1.0,
) -> Matrix:
    """Elect a sign per entry and sum the entries with that sign: [n, p, q], [n] -> [p, q].

    election: the sign of the sum of the entries ("total") or of their majority ("frequency"). A tie
        elects plus. An entry of zero never agrees.
    voters: whether the election uses the entries as they are ("plain") or times their weights.
    divisor: what the sum of the agreeing weighted entries is divided by: how many they are
        ("count"), the sum of their weights ("weights"; 1 where that sum vanishes), or 1 ("none").
    factor: multiplies the result.
    """
    given = weights.tolist()
    leans = given if voters == "weighted" else [1.0] * len(given)
    sums = torch.zeros_like(deltas[0])
    for delta, lean in zip(deltas, leans, strict=True):
        if election == "total":
            sums.add_(delta, alpha=lean)
        else:
            sums.add_(delta.sign(), alpha=(lean > 0) - (lean < 0))
    elected = torch.where(sums >= 0, 1.0, -1.0).to(deltas)
    total, share = torch.zeros_like(sums), torch.zeros_like(sums)
    for delta, lean, weight in zip(deltas, leans, given, strict=True):
        agreeing = torch.mul(delta, elected * lean).clamp_min_(0)
        total.add_(agreeing, alpha=weight if voters == "plain" else 1.0)
        if divisor != "none":
            share.add_(agreeing.sign_(), alpha=1.0 if divisor == "count" else weight)
    total.mul_(elected * factor)
    if divisor == "count":
        total.div_(share.clamp_min_(1))
    elif divisor == "weights":
        total.div_(_nonzero(share, weights))
    return total


def _nonzero(share: Matrix, weights: Weights) -> Matrix:
    """The sums of weights, with 1 in place of zero and of rounding where weights cancel."""
    least = 1e-6 * float(weights.abs().max()) if bool((weights < 0).any()) else 0.0
    return torch.where(share.abs() <= least, 1.0, share)
