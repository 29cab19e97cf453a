"""Critical values for the best of several systems against the best of several baselines.

They are quantiles of the largest of many studentised differences, by the Gaussian multiplier
bootstrap over clusters (Chernozhukov, Chetverikov and Kato 2013). Its draws sum_g e_g u_g with e_g
standard normal are exactly normal with covariance U^T U given the data, so they are drawn from that
covariance directly. Where too few draws lie beyond the quantile, the bound of Bonferroni takes its
place.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loraprobe.evaluation.statistics import Array, Estimates, quantile

DRAWS = 10_000
FEWEST_DRAWS = 50  # beyond a quantile that is taken from the draws
SELECTION = 2.0  # standard errors beyond which something no longer contends to be the best


def largest(
    estimates: Estimates, shape: tuple[int, int], level: float, seed: int
) -> tuple[float, float, float]:
    """Critical values for the best of S systems against the best of B baselines.

    Pairs are ordered as a [S, B] grid. Returns (lower, upper, both):

    - `lower`: max_s min_b (d_sb - lower * se_sb) exceeds max_s min_b delta_sb with probability
      (1 - level) / 2. For any best baseline only the choice among systems needs correction, so it
      is the largest quantile over b of max_s T_sb.
    - `upper`: the same with the roles exchanged, for max_s min_b (d_sb + upper * se_sb).
    - `both`: two-sided, for all pairs together.

    Only what contends is corrected for, as in Chernozhukov, Lee and Rosen (2013), "Intersection
    bounds": systems whose smallest difference, and baselines whose difference, lie within SELECTION
    standard errors of both from the best. Each is at least the critical value of a single pair.
    """
    rng = np.random.default_rng(seed)
    covariance = estimates.influence.T @ estimates.influence + np.diag(estimates.pseudo)
    scale = np.sqrt(np.diag(covariance))
    alone = scale == 0  # pairs without any variation count as independent
    scale[alone] = 1.0
    correlation = covariance / np.outer(scale, scale)
    correlation[np.diag_indices_from(correlation)] = 1.0
    values, vectors = np.linalg.eigh(correlation)
    # The symmetric root: unlike eigenvectors, it does not jump where rounding moves equal ones.
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    draws = rng.standard_normal((DRAWS, len(scale))) @ root.T
    if np.isfinite(estimates.df) and estimates.df > 0:
        draws /= np.sqrt(rng.chisquare(estimates.df, (DRAWS, 1)) / estimates.df)
    grid = np.concatenate([draws, -draws]).reshape(-1, *shape)
    both = _quantile(np.abs(draws), level, estimates.critical(level), estimates.df)
    single = estimates.critical(level)
    systems, pairs = contending(estimates, shape)
    over_systems = np.where(systems[:, None], grid, -np.inf).swapaxes(1, 2)
    over_baselines = np.where(pairs, grid, -np.inf)
    one = (1 + level) / 2
    lower = _quantile(over_systems, one, single, estimates.df)
    return lower, _quantile(over_baselines, one, single, estimates.df), both


def contending(
    estimates: Estimates, shape: tuple[int, int]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of S systems may be the best, [S], and which baselines may be that of each, [S, B].

    What is left out is further from the best than SELECTION standard errors of both.
    """
    low, high = reach(estimates, shape)
    difference, se = estimates.difference.reshape(shape), estimates.se.reshape(shape)
    beyond = (difference + SELECTION * se).min(1, keepdims=True)
    return high >= low.max(), difference - SELECTION * se <= beyond


def reach(estimates: Estimates, shape: tuple[int, int]) -> tuple[Array, Array]:
    """SELECTION standard errors around the smallest difference of each system: [S], [S]."""
    difference, se = estimates.difference.reshape(shape), estimates.se.reshape(shape)
    place = np.arange(shape[0]), difference.argmin(1)
    return difference[place] - SELECTION * se[place], difference[place] + SELECTION * se[place]


def _quantile(draws: Array, probability: float, single: float, df: float) -> float:
    """The largest quantile of the maxima over the last axis of draws [draws, ..., P].

    At least `single`, at most Bonferroni's bound for the number of those that are not -inf, which
    stands alone where fewer than FEWEST_DRAWS lie beyond the quantile.
    """
    many = int(np.isfinite(draws[0]).sum(-1).max())
    if many == 1:
        return single
    two_sided = bool((draws >= 0).all())
    bound = quantile(1 - (1 - probability) / many / (2 if two_sided else 1), df)
    if (1 - probability) * len(draws) < FEWEST_DRAWS:
        return max(bound, single)
    found = float(np.quantile(draws.max(-1), probability, axis=0).max())
    return max(single, min(found, bound))
