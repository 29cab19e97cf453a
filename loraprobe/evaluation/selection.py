"""Critical values for the best of several systems against the best of several baselines.

They are quantiles of the largest of many studentised differences, by the Gaussian multiplier
bootstrap over clusters (Chernozhukov, Chetverikov and Kato 2013). Its draws sum_g e_g u_g with e_g
standard normal are exactly normal with covariance U^T U given the data. So they are drawn from that
covariance where there are fewer differences than clusters, and else from the clusters, whose
multipliers all differences share. Where too few draws lie beyond the quantile, the bound of
Bonferroni takes its place.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from loraprobe.evaluation.statistics import Array, Estimates, quantile

DRAWS = 10_000
FEWEST_DRAWS = 50  # beyond a quantile that is taken from the draws
SELECTION = 2.0  # standard errors beyond which something no longer contends to be the best


def largest(
    estimates: Estimates, shape: tuple[int, int], level: float, seed: int, forms: int = 1
) -> tuple[float, float, float]:
    """Critical values for the best of S systems against the best of B baselines.

    Pairs are ordered as a [S, B] grid. Returns (lower, upper, both):

    - `lower`: max_s min_b (d_sb - lower * se_sb) exceeds max_s min_b delta_sb with probability
      (1 - level) / 2 / forms. For any best baseline only the choice among systems needs correction,
      so it is the largest quantile over b of max_s T_sb. forms: of the question, which divide the
      probability among them.
    - `upper`: the same with the roles exchanged, for max_s min_b (d_sb + upper * se_sb), with
      probability (1 - level) / 2.
    - `both`: two-sided, for all pairs together.

    Only what contends is corrected for, as in Chernozhukov, Lee and Rosen (2013), "Intersection
    bounds": systems whose smallest difference, and baselines whose difference, lie within SELECTION
    standard errors of both from the best. Each is at least the critical value of a single pair.
    """
    draws = _draws(estimates, seed)
    grid = draws.reshape(-1, *shape)
    systems, pairs = contending(estimates, shape)
    lower = _one_sided(estimates, grid[:, systems].swapaxes(1, 2), 1 - (1 - level) / forms)
    upper = _one_sided(estimates, np.where(pairs, grid, np.nan), level)
    both = np.abs(draws).max(-1)
    return lower, upper, _quantile(estimates, both, draws.shape[-1], level, two_sided=True)


def _one_sided(estimates: Estimates, draws: Array, level: float) -> float:
    """The critical value for the largest over the last axis [DRAWS, ..., P]; NaN is left out."""
    many = int(np.isfinite(draws[0]).sum(-1).max())
    values = np.concatenate([np.nanmax(draws, -1), -np.nanmin(draws, -1)])  # and of the negatives
    return _quantile(estimates, values, many, level)


def _quantile(
    estimates: Estimates, values: Array, many: int, level: float, two_sided: bool = False
) -> float:
    """The largest quantile of `values` [draws, ...], each the largest of up to `many` differences.

    It is at least the critical value of a single pair, at most Bonferroni's bound, which stands
    alone where fewer than FEWEST_DRAWS lie beyond the quantile.
    """
    single, probability = estimates.critical(level), level if two_sided else (1 + level) / 2
    if many == 1:
        return single
    bound = quantile(1 - (1 - probability) / many / (2 if two_sided else 1), estimates.df)
    if (1 - probability) * len(values) < FEWEST_DRAWS:
        return max(bound, single)
    found = float(np.quantile(values, probability, axis=0).max())
    return max(single, min(found, bound))


def _draws(estimates: Estimates, seed: int) -> Array:
    """Studentised differences [DRAWS, P] where nothing differs, with the correlation of these."""
    rng = np.random.default_rng(seed)
    influence, pairs = estimates.influence, len(estimates.pseudo)
    scale = np.sqrt((influence**2).sum(0) + estimates.pseudo)
    alone = scale == 0  # pairs without any variation count as independent
    scale[alone] = 1.0
    if len(influence) < pairs:
        draws = rng.standard_normal((DRAWS, len(influence))) @ (influence / scale)
        own = np.where(alone, 1.0, np.sqrt(estimates.pseudo) / scale)
        draws += rng.standard_normal((DRAWS, pairs)) * own
    else:
        covariance = influence.T @ influence + np.diag(estimates.pseudo)
        correlation = covariance / np.outer(scale, scale)
        correlation[np.diag_indices_from(correlation)] = 1.0
        values, vectors = np.linalg.eigh(correlation)
        # The symmetric root: unlike eigenvectors, it does not jump where rounding moves equal ones.
        root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
        draws = rng.standard_normal((DRAWS, pairs)) @ root.T
    if np.isfinite(estimates.df) and estimates.df > 0:
        draws /= np.sqrt(rng.chisquare(estimates.df, (DRAWS, 1)) / estimates.df)
    return draws


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
