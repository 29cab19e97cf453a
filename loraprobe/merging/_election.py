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
    columns = weights.to(deltas)[:, None, None]
    votes = deltas * columns if voters == "weighted" else deltas
    sums = votes.sum(0) if election == "total" else votes.sign().sum(0)
    elected = torch.where(sums >= 0, 1.0, -1.0).to(deltas)
    sizes = (votes * elected).clamp_min_(0)  # of what carries the elected sign, else 0
    agree = (sizes > 0).to(deltas)
    total = (sizes if voters == "weighted" else sizes * columns).sum(0).mul_(elected)
    if divisor == "count":
        total = total / agree.sum(0).clamp_min(1)
    elif divisor == "weights":
        total = total / _nonzero((agree * columns).sum(0), weights)
    return total if factor == 1 else total * factor


def _nonzero(share: Matrix, weights: Weights) -> Matrix:
    """The sums of weights with 1 for those that are zero, or would be but for rounding where
    weights of both signs cancel."""
    least = 1e-6 * float(weights.abs().max()) if bool((weights < 0).any()) else 0.0
    return torch.where(share.abs() <= least, 1.0, share)
