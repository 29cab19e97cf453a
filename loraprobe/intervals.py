"""The interval of a share of items that come in clusters, and what such intervals are made of.

Evaluation and coverage quote the same interval for the same items.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]
Integers = NDArray[np.int64]


def wilson(x: Array, clusters: Integers, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval for the share of ones in `x` [items], with n divided by the design effect.

    The added half success and half failure that make the effect defined at 0 and 1 stand for one
    cluster; Student's t takes the place of z where a cluster holds more than one item.
    """
    n, share = len(x), float(np.mean(x))
    deviations = (x - share)[:, None]
    _, index = np.unique(clusters, return_inverse=True)
    sums = cluster_sums(deviations, index)
    sizes = np.bincount(index)
    typical = np.array([(sizes**2).sum() / n])
    effect = design_effect((sums**2).sum(0), (deviations**2).sum(0), typical, 1.0)
    size = n / float(effect[0])
    z = quantile((1 + level) / 2, float(n / typical[0]) - 1 if sizes.max() > 1 else float("inf"))
    if np.isinf(z):
        return 0.0, 1.0
    middle = (share + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z / (1 + z**2 / size) * np.sqrt(share * (1 - share) / size + z**2 / (4 * size**2))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def quantile(probability: float, df: float) -> float:
    """Quantile of Student's t, or of the normal for infinite df; infinite without any df."""
    if df <= 0:
        return float("inf")
    return float(special.ndtri(probability) if np.isinf(df) else special.stdtrit(df, probability))


def design_effect(between: Array, within: Array, typical: Array, pseudo: float) -> Array:
    """How many times clusters make the variance larger, at least 1.

    `pseudo` observations that stand for whole clusters of the typical size are added, so that
    without any variation the effect is that of perfectly alike clusters.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = (between + pseudo * typical) / (within + pseudo)
    return np.maximum(np.where(np.isfinite(effect), effect, typical), 1.0)


def cluster_sums(x: Array, index: Integers) -> Array:
    """Sums of the rows of x [items, P] by cluster: [clusters, P]; index [items] numbers them."""
    sums = np.zeros((int(index.max()) + 1, x.shape[1]))
    np.add.at(sums, index, x)
    return sums
