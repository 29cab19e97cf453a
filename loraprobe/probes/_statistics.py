"""The intervals of evaluation for a probe's means and shares of items that come in clusters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from loraprobe import intervals
from loraprobe.evaluation import statistics
from loraprobe.records import Interval


def mean_interval(
    values: Sequence[float],
    clusters: Sequence[str],
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Interval | None:
    """The cluster-robust t interval (95 %) of a mean; None with fewer than two clusters.

    `bounds`: the smallest and the largest value that the mean can have.
    """
    if len(set(clusters)) < 2:
        return None
    low, high = statistics.mean_interval(np.array(values, dtype=np.float64), _numbered(clusters))
    return max(bounds[0], low), min(bounds[1], high)


def share_interval(hits: Sequence[float], clusters: Sequence[str]) -> Interval | None:
    """Wilson's interval (95 %) of a share of hits (1.0 or 0.0); None without hits."""
    if not hits:
        return None
    return intervals.wilson(np.array(hits, dtype=np.float64), _numbered(clusters))


def _numbered(clusters: Sequence[str]) -> intervals.Integers:
    return np.unique(np.array(clusters, dtype=str), return_inverse=True)[1]
