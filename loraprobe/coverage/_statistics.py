"""Intervals for means and shares of items that come in clusters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from loraprobe.records import Interval


def mean_interval(
    values: Sequence[float],
    clusters: Sequence[str],
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Interval | None:
    """The cluster-robust t interval (95 %) of a mean; None with fewer than two clusters.

    `bounds`: between what values the mean can lie at all.
    """
    from scipy import special

    x = np.asarray(values, dtype=np.float64)
    sums = _cluster_sums(x - x.mean(), clusters) if len(x) else np.zeros(0)
    count = len(sums)
    if count < 2:
        return None
    error = math.sqrt(count / (count - 1) * float((sums**2).sum())) / len(x)
    half = float(special.stdtrit(count - 1, 0.975)) * error
    return max(bounds[0], float(x.mean()) - half), min(bounds[1], float(x.mean()) + half)


def share_interval(hits: Sequence[float], clusters: Sequence[str]) -> Interval | None:
    """Wilson's interval (95 %) of a share of hits (1.0 or 0.0): that of `intervals.wilson`."""
    from loraprobe.intervals import wilson

    if not hits:
        return None
    return wilson(np.asarray(hits, dtype=np.float64), _numbered(clusters))


def difference_interval(values: Sequence[float], clusters: Sequence[str]) -> Interval | None:
    """The interval of a mean of paired differences of right and wrong (-1, 0, 1).

    One observation in each direction is added, each a cluster of its own: with every item its own
    cluster that is Bonett and Price's (2012) adjusted interval but for t in the place of z.
    """
    if not values:
        return None
    return mean_interval([*values, 1.0, -1.0], [*clusters, "\0+", "\0-"], (-1.0, 1.0))


def _cluster_sums(values: np.ndarray, clusters: Sequence[str]) -> np.ndarray:
    return np.bincount(_numbered(clusters), weights=values)


def _numbered(clusters: Sequence[str]) -> np.ndarray:
    return np.unique(np.asarray(clusters, dtype=object).astype(str), return_inverse=True)[1]
