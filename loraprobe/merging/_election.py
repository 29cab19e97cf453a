"""TIES' last two steps: elect a sign per entry, fuse the entries that carry it."""

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
    """Deltas [n, p, q] and weights [n] -> [p, q].

    voters: whether the entries elect as they are ("plain") or times their weights. A tie elects
        plus. An entry at zero agrees with nobody.
    divisor: the weighted entries that agree are summed and divided by how many they are ("count"),
        by the sum of their weights ("weights"; by 1 where that sum vanishes), or not ("none").
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
    """The sums of weights with 1 for those that are zero, or would be but for rounding where
    weights of both signs cancel."""
    least = 1e-6 * float(weights.abs().max()) if bool((weights < 0).any()) else 0.0
    return torch.where(share.abs() <= least, 1.0, share)
