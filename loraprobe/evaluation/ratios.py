"""The interval of a ratio of two paired differences, which a retention is."""

from __future__ import annotations

import numpy as np

from loraprobe.evaluation.statistics import LEVEL, PSEUDO, Array, Labels, estimate


def ratio(
    u: Array, w: Array, clusters: Labels, level: float = LEVEL
) -> tuple[float, tuple[float, float]] | None:
    """Retention r = mean(u) / mean(w) over items, with Fieller's interval.

    The interval contains all r for which Bonett and Price's interval for the mean of u - r w
    contains 0. It is therefore valid if everything is right, unlike a bootstrap of the ratio. None
    if that interval of mean(w) is not above 0, or if the set is unbounded.
    """
    below = estimate(w[:, None], clusters)
    if below.center[0] <= below.critical(level) * below.se[0]:
        return None
    point = float(u.mean() / w.mean())
    at = estimate((u - point * w)[:, None], clusters)
    size, z = float(at.n_effective[0]), at.critical(level)
    total = size + PSEUDO
    mean_u, mean_w = size * u.mean() / total, size * w.mean() / total
    # z^2 var(r) - mean(r)^2 as a polynomial c + b r + a r^2, not negative inside the set
    weight = z**2 / total
    a = weight * (size * (w * w).mean() / total - mean_w**2) - mean_w**2
    b = -2 * (weight * (size * (u * w).mean() / total - mean_u * mean_w) - mean_u * mean_w)
    c = weight * ((size * (u * u).mean() + PSEUDO) / total - mean_u**2) - mean_u**2
    inside = b * b - 4 * a * c
    if not (a < 0 and inside >= 0):
        return None
    ends = sorted((-b + sign * np.sqrt(inside)) / (2 * a) for sign in (-1, 1))
    return point, (float(ends[0]), float(ends[1]))
