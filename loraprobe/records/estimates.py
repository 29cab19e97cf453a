"""A measured figure with its interval, and how many items would decide about it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from loraprobe.defaults import MOST_ITEMS

Interval = tuple[float, float]
Standing = Literal["likely", "inconclusive", "unlikely"]  # whether a figure exceeds a threshold
POWER = 0.8
Z95 = NormalDist().inv_cdf(0.975)  # critical value of a 95 % interval


@dataclass(frozen=True)
class Estimate:
    """A score, gain, difference or retention with its interval; more is better.

    It was measured on `n` items in `clusters` clusters.
    """

    value: float
    low: float
    high: float
    n: int
    clusters: int

    @property
    def error(self) -> float:
        """The standard error that a 95 % interval implies."""
        return (self.high - self.low) / 2 / Z95

    def exceeds(self, threshold: float) -> Standing:
        """Whether the figure exceeds a threshold, as far as its interval shows."""
        if self.low > threshold:
            return "likely"
        return "unlikely" if self.high < threshold else "inconclusive"

    def items_for(self, threshold: float) -> int | None:
        """How many items would show on which side of the threshold the figure lies."""
        half = self.value - self.low if self.value > threshold else self.high - self.value
        return items_needed(self.n, self.value - threshold, half / Z95)

    def __neg__(self) -> Estimate:
        return Estimate(-self.value, -self.high, -self.low, self.n, self.clusters)

    def __sub__(self, other: Estimate) -> Estimate:
        """The difference as if the two figures were independent (Zou and Donner 2008)."""
        value = self.value - other.value
        below = math.hypot(self.value - self.low, other.high - other.value)
        above = math.hypot(self.high - self.value, other.value - other.low)
        return Estimate(
            value,
            value - below,
            value + above,
            min(self.n, other.n),
            min(self.clusters, other.clusters),
        )


def pooled(estimates: Sequence[Estimate]) -> Estimate:
    """The plain mean of figures of different tasks.

    Tasks have items of their own, so the squared distances of the ends from the values add up.
    """
    if len(estimates) == 1:
        return estimates[0]
    count, value = len(estimates), sum(one.value for one in estimates) / len(estimates)
    below = math.sqrt(sum((one.value - one.low) ** 2 for one in estimates)) / count
    above = math.sqrt(sum((one.high - one.value) ** 2 for one in estimates)) / count
    n, clusters = sum(one.n for one in estimates), sum(one.clusters for one in estimates)
    return Estimate(value, value - below, value + above, n, clusters)


def averaged(estimates: Sequence[Estimate]) -> Estimate:
    """The plain mean of figures, and of their ends, which is wider than `pooled`."""
    value, low, high = (
        sum(ends) / len(estimates)
        for ends in zip(*((one.value, one.low, one.high) for one in estimates), strict=True)
    )
    n, clusters = sum(one.n for one in estimates), sum(one.clusters for one in estimates)
    return Estimate(value, low, high, n, clusters)


def items_needed(n: int, distance: float, se: float, critical: float = Z95) -> int | None:
    """The number of items with which an undecided interval excludes a threshold.

    n: the items so far. distance: the estimate less the threshold. se: its standard error, which is
    proportional to 1 / sqrt(items). critical: standard errors from the estimate to the end of the
    interval. If the true value is the estimate, new items of that number decide with probability
    POWER: n ((critical + z_POWER) se / distance)^2. None if MOST_ITEMS are not enough, or if the
    interval is unbounded.
    """
    reach = (critical + NormalDist().inv_cdf(POWER)) * se
    if n <= 0 or distance == 0 or not 0 < reach < math.inf:
        return None
    ratio = reach / distance
    needed = n * ratio * ratio  # infinite, unlike ** 2, where it is beyond the largest float
    return max(n + 1, math.ceil(needed)) if needed <= MOST_ITEMS else None
