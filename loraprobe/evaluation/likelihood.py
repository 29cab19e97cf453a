"""The likelihood ratio of a difference of two paired shares, and its interval."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]
HALF = 0.5  # observations that are added in each direction
BISECTIONS = 40  # to the end of an interval: 2^-40 of its range


def likelihood_interval(
    gained: Array, lost: Array, n: Array, critical: float
) -> tuple[Array, Array]:
    """The differences whose likelihood ratio is at most critical^2, by bisection: [P], [P].

    gained, lost, n: [P], numbers of items, also fractions. Where all items are gained (or lost),
    the difference 1 (or -1) is inside, whatever half an observation says.
    """
    if np.isinf(critical):
        return np.full(len(n), -1.0), np.full(len(n), 1.0)
    counts = gained + HALF, lost + HALF, n + 2 * HALF
    middle = (gained - lost) / counts[2]
    ends = []
    for side in (-1.0, 1.0):
        inside, outside = middle, np.full(len(n), side)
        for _ in range(BISECTIONS):
            between = (inside + outside) / 2
            accepted = np.abs(signed_root(*counts, between)) <= critical
            inside = np.where(accepted, between, inside)
            outside = np.where(accepted, outside, between)
        ends.append(inside)
    low = np.where(lost >= n * (1 - 1e-9), -1.0, ends[0])
    return low, np.where(gained >= n * (1 - 1e-9), 1.0, ends[1])


def signed_root(gained: Array, lost: Array, n: Array, difference: Array) -> Array:
    """The signed root of the likelihood ratio of a difference of two shares, about normal.

    gained, lost > 0, gained + lost < n. The most likely share of lost items with this difference is
    the root of a quadratic equation (Tango 1998).
    """
    b = (2 * n - gained + lost) * difference - gained - lost
    root = np.sqrt(np.maximum(b * b + 8 * n * lost * difference * (1 - difference), 0.0))
    low = np.maximum((root - b) / (4 * n), 1e-300)
    same = np.maximum(n - gained - lost, 0.0)  # rounding leaves a little below 0
    ratio = special.xlogy(gained, gained / n / np.maximum(low + difference, 1e-300))
    ratio += special.xlogy(lost, lost / n / low)
    ratio += special.xlogy(same, same / n / np.maximum(1 - 2 * low - difference, 1e-300))
    sign = np.sign((gained - lost) / n - difference)
    return np.asarray(sign * np.sqrt(np.maximum(2 * ratio, 0.0)))
