"""TIES' last two steps: elect a sign per entry, fuse the entries that carry it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from loraprobe.merging._method import Deltas, Matrix, Weights
from loraprobe.merging._sparse import SparseMethod

Election = Literal["total", "frequency"]
Variant = Literal["peft", "mergekit"]
Voters = Literal["plain", "weighted"]
Divisor = Literal["count", "weights", "none"]


@dataclass(frozen=True)
class ElectingMethod(SparseMethod):
    """A sparse method that then elects a sign per entry and fuses the entries that carry it.

    election: whose sign wins, that of the sum of the entries ("total", the papers') or that of the
        majority ("frequency").
    normalize: whether the sum of what agrees is divided, by the count or by the weights of what
        agrees, as the variant has it. None leaves that to the variant.
    lambda_: a factor of the whole result, written `lambda` on the command line.
    """

    election: Election = "total"
    normalize: bool | None = None
    lambda_: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.lambda_) or self.lambda_ == 0:
            raise ValueError(
                f"lambda, the factor of the result, is finite and not 0, but {self.lambda_}."
            )

    def counts(self) -> bool:
        """Whether it elects before weighting and divides by how many agree, as peft does."""
        return False

    def default_weights(self, n: int) -> tuple[float, ...]:
        """1 each where what agrees is divided; else 1/n each, so that the sum is an average."""
        return (1.0 if self.normalize else 1.0 / n,) * n

    def elected(self, weights: Weights) -> Callable[[Deltas], Matrix]:
        """What fuses one block [n, rows, q] into [rows, q]."""
        divisor: Divisor = "count" if self.counts() else "weights"
        return partial(
            elect,
            weights=weights,
            election=self.election,
            voters="plain" if self.counts() else "weighted",
            divisor=divisor if self.normalize else "none",
            factor=self.lambda_,
        )


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
