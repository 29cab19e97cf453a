"""Intervals for proportions, means, paired differences and ratios of clustered items.

They are defined where every item is right or wrong, and they account for clusters and for the
choice of the best of several systems.

*One share.* Wilson's interval, with the number of items divided by the design effect.

*One pair.* An item is gained, lost, or the same for both. Half an observation is added to the
gained and to the lost ones. The interval holds all differences whose likelihood ratio
2 log(L(most likely shares) / L(most likely shares with this difference)) is at most z^2. It decides
more often than Bonett and Price's where nothing is lost, and it stays near its level at the small
alpha of an early round (examples/calibration/rule.md has its error rates).

A standard error says which systems contend to be the best (`largest`) and how many items would
decide, and `ratio` inverts the interval that it gives. It is that of Bonett and Price (2012),
"Adjusted Wald confidence interval for a difference of binomial proportions based on paired data",
with one observation added in each direction: the mean is m = n d / (n + 2) and the variance ((n q +
2) / (n + 2) - m^2) / (n + 2). d is the difference and q the share of items on which the two differ.

*Several tasks.* Squared distances of the ends from the difference add up (Zou and Donner 2008).

*Clusters.* Items of one cluster (a person, a document) are not independent. The design effect
D = sum_g (sum_{i in g} (x_i - d))^2 / sum_i (x_i - d)^2 is the factor by which the variance grows.
n / D replaces n above. Student's t replaces z; its degrees of freedom are the effective number of
clusters (sum n_g)^2 / sum n_g^2, less one. The two added observations count as whole clusters, so
that D is also defined without any difference. D is never below 1. If every item is its own
cluster, D is 1 and z stays. A percentile bootstrap of clusters is not used, because it collapses to
a point where all items agree.

*The best of several systems against the best of several baselines.* Critical values are quantiles
of the largest of many studentised differences, by the Gaussian multiplier bootstrap over clusters
(Chernozhukov, Chetverikov and Kato 2013). Its draws sum_g e_g u_g with e_g standard normal are
exactly normal with covariance U^T U given the data. So they are drawn from that covariance where
there are fewer differences than clusters, and else from the clusters, whose multipliers all
differences share. Where too few draws lie beyond the quantile, the bound of Bonferroni takes its
place.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from loraprobe.defaults import ALPHA, CONTENDS

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Labels = NDArray[Any]  # one label an item; items with equal labels form one cluster

LEVEL = 1 - ALPHA  # of every interval in a report
PSEUDO = 2.0  # observations that Bonett and Price add, one in each direction
HALF = 0.5  # observations that a likelihood ratio adds in each direction
BISECTIONS = 40  # to the end of an interval: 2^-40 of its range
DRAWS = 10_000
FEWEST_DRAWS = 50  # beyond a quantile that is taken from the draws


@dataclass(frozen=True)
class Differences:
    """Paired differences of P pairs, with the quantities that an interval needs.

    difference [P]: the observed mean. center, se [P]: mean and standard error with the
    observations that Bonett and Price add. df: degrees of freedom of Student's t, infinite for the
    normal. influence [clusters, P]: the part of each cluster in the difference. pseudo [P]: the
    variance of the added observations. n [P]: items; n_effective [P]: items divided by the design
    effect. bounded: values are differences of right and wrong. counts [tasks, 3, P]: gained, lost
    and all items of each task, divided by the design effect.
    """

    difference: Array
    center: Array
    se: Array
    df: float
    influence: Array
    pseudo: Array
    n: Integers
    n_effective: Array
    bounded: bool
    counts: Array

    def interval(self, critical: float) -> tuple[Array, Array]:
        """Both ends, [P] and [P]: of the likelihood ratio if bounded, else +- critical * se.

        With a single cluster the critical value is infinite, and the interval holds everything.
        """
        if not self.bounded:
            reach = critical * np.where(np.isinf(critical), 1.0, self.se)
            return self.center - reach, self.center + reach
        ends = np.stack(
            [likelihood_interval(task[0], task[1], task[2], critical) for task in self.counts]
        )
        means = (self.counts[:, 0] - self.counts[:, 1]) / self.counts[:, 2]
        if len(ends) == 1:
            return ends[0, 0], ends[0, 1]
        below, above = np.sqrt(((ends - means[:, None]) ** 2).sum(0)) / len(ends)
        return (self.difference - below).clip(-1, 1), (self.difference + above).clip(-1, 1)

    def intervals(self, critical: float) -> list[tuple[float, float]]:
        """`interval` as a pair of numbers for each of the P pairs."""
        low, high = self.interval(critical)
        return list(zip(low.tolist(), high.tolist(), strict=True))

    def critical(self, level: float = LEVEL) -> float:
        """Two-sided critical value of a single pair."""
        return quantile((1 + level) / 2, self.df)


def estimate(
    x: Array, clusters: Labels, strata: Integers | None = None, *, bounded: bool = True
) -> Differences:
    """Differences of the mean of each column of `x` [items, P]; NaN where a pair lacks an item.

    clusters: [items], labels of clusters. strata: [items], numbers of tasks; the mean is the plain
    mean over tasks. bounded: values are differences of right and wrong, in [-1, 1]; otherwise
    (losses) the cluster-robust t interval is used.
    """
    strata = np.zeros(len(x), dtype=np.int64) if strata is None else strata
    parts = [_stratum(x[strata == k], clusters[strata == k], bounded) for k in np.unique(strata)]
    count = len(parts)
    variances = np.array([part.se**2 for part in parts])
    with np.errstate(divide="ignore", invalid="ignore"):
        dfs = np.array([part.df for part in parts])[:, None]
        welch = variances.sum(0) ** 2 / (variances**2 / dfs).sum(0)
    finite = welch[np.isfinite(welch)]
    return Differences(
        difference=np.mean([part.difference for part in parts], axis=0),
        center=np.mean([part.center for part in parts], axis=0),
        se=np.sqrt(variances.sum(0)) / count,
        df=min(part.df for part in parts) if count == 1 else float(min(finite, default=np.inf)),
        influence=np.concatenate([part.influence for part in parts]) / count,
        pseudo=np.sum([part.pseudo for part in parts], axis=0) / count**2,
        n=np.sum([part.n for part in parts], axis=0),
        n_effective=np.sum([part.n_effective for part in parts], axis=0),
        bounded=bounded,
        counts=np.concatenate([part.counts for part in parts]),
    )


def _stratum(x: Array, clusters: Labels, bounded: bool) -> Differences:
    """`estimate` for a single task."""
    present = np.isfinite(x)
    n = present.sum(0)
    if not n.all():
        raise ValueError("a pair without a common item has no difference")
    mean = np.where(present, x, 0.0).sum(0) / n
    deviations = np.where(present, x - mean, 0.0)
    _, index = np.unique(clusters, return_inverse=True)
    sums, sizes = _cluster_sums(deviations, index), _cluster_sums(present.astype(float), index)
    typical = (sizes**2).sum(0) / n  # size of the cluster of a random item
    df = float("inf")
    if not bounded or sizes.max() > 1:
        df = float((n / typical).min()) - 1
    between, within = (sums**2).sum(0), (deviations**2).sum(0)
    if bounded:
        effect = _design_effect(between, within, typical, PSEUDO)
        size = n / effect
        center = size * mean / (size + PSEUDO)
        square = (size * (np.where(present, x, 0.0) ** 2).sum(0) / n + PSEUDO) / (size + PSEUDO)
        se = np.sqrt((square - center**2) / (size + PSEUDO))
        pseudo = PSEUDO * typical / n**2
    else:
        count = (sizes > 0).sum(0)
        center, size = mean, n / _design_effect(between, within, typical, 0.0)
        se = np.sqrt(between * count / np.maximum(count - 1, 1)) / n
        pseudo = np.zeros_like(mean)
    shares = [np.where(present, np.maximum(sign * x, 0.0), 0.0).sum(0) / n for sign in (1, -1)]
    counts = np.stack([shares[0] * size, shares[1] * size, size])[None]
    return Differences(mean, center, se, df, sums / n, pseudo, n, size, bounded, counts)


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
    inside = np.stack([(gained - lost) / counts[2]] * 2)
    outside = np.stack([np.full(len(n), -1.0), np.full(len(n), 1.0)])
    for _ in range(BISECTIONS):
        between = (inside + outside) / 2
        accepted = np.abs(signed_root(*counts, between)) <= critical
        inside = np.where(accepted, between, inside)
        outside = np.where(accepted, outside, between)
    low = np.where(lost >= n * (1 - 1e-9), -1.0, inside[0])
    return low, np.where(gained >= n * (1 - 1e-9), 1.0, inside[1])


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


def fieller(
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


def wilson(x: Array, clusters: Labels, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's interval for the share of ones in `x` [items], with n divided by the design effect.

    Half a success and half a failure are added, which together count as one cluster. They define
    the design effect where the share is 0 or 1. Student's t replaces z if a cluster holds more
    than one item.
    """
    n, share = len(x), float(np.mean(x))
    deviations = (x - share)[:, None]
    _, index = np.unique(clusters, return_inverse=True)
    sums = _cluster_sums(deviations, index)
    sizes = np.bincount(index)
    typical = np.array([(sizes**2).sum() / n])
    effect = _design_effect((sums**2).sum(0), (deviations**2).sum(0), typical, 1.0)
    size = n / float(effect[0])
    z = quantile((1 + level) / 2, float(n / typical[0]) - 1 if sizes.max() > 1 else float("inf"))
    if np.isinf(z):
        return 0.0, 1.0
    middle = (share + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z / (1 + z**2 / size) * np.sqrt(share * (1 - share) / size + z**2 / (4 * size**2))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def mean_interval(x: Array, clusters: Labels) -> tuple[float, float]:
    """The cluster-robust t interval for the mean of `x` [items] (losses)."""
    estimated = estimate(x[:, None], clusters, bounded=False)
    return estimated.intervals(estimated.critical())[0]


def quantile(probability: float, df: float) -> float:
    """Quantile of Student's t; of the normal for infinite df; infinite for df of 0 or less."""
    if df <= 0:
        return float("inf")
    return float(special.ndtri(probability) if np.isinf(df) else special.stdtrit(df, probability))


def _design_effect(between: Array, within: Array, typical: Array, pseudo: float) -> Array:
    """The factor by which clusters increase the variance, at least 1.

    `pseudo` observations are added, each as a whole cluster of the typical size. Without any
    variation the effect is therefore that of clusters whose items are all equal.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        effect = (between + pseudo * typical) / (within + pseudo)
    return np.maximum(np.where(np.isfinite(effect), effect, typical), 1.0)


def _cluster_sums(x: Array, index: Integers) -> Array:
    """Sums of the rows of x [items, P] by cluster: [clusters, P]; index [items] numbers them."""
    sums = np.zeros((int(index.max()) + 1, x.shape[1]))
    np.add.at(sums, index, x)
    return sums


# ---- the choice of the best ----------------------------------------------------------------------


def largest(
    estimates: Differences, shape: tuple[int, int], level: float, seed: int, forms: int = 1
) -> tuple[float, float]:
    """Critical values for the best of S systems against the best of B baselines.

    Pairs are ordered as a [S, B] grid. Returns (lower, upper):

    - `lower`: max_s min_b (d_sb - lower * se_sb) exceeds max_s min_b delta_sb with probability
      (1 - level) / 2 / forms. For any best baseline only the choice among systems needs correction,
      so it is the largest quantile over b of max_s T_sb. forms: of the question, which divide the
      probability among them.
    - `upper`: the same with the roles exchanged, for max_s min_b (d_sb + upper * se_sb), with
      probability (1 - level) / 2.

    Only what contends is corrected for, as in Chernozhukov, Lee and Rosen (2013), "Intersection
    bounds": systems whose smallest difference, and baselines whose difference, lie within CONTENDS
    standard errors of both from the best. Each is at least the critical value of a single pair.
    """
    grid = _draws(estimates, seed).reshape(-1, *shape)
    systems, pairs = contending(estimates, shape)
    lower = _one_sided(estimates, grid[:, systems].swapaxes(1, 2), 1 - (1 - level) / forms)
    return lower, _one_sided(estimates, np.where(pairs, grid, np.nan), level)


def largest_of_all(estimates: Differences, level: float, seed: int) -> float:
    """The two-sided critical value for all pairs together, at least that of a single pair."""
    draws = np.abs(_draws(estimates, seed))
    return _quantile(estimates, draws.max(-1), draws.shape[-1], level, two_sided=True)


def _one_sided(estimates: Differences, draws: Array, level: float) -> float:
    """The critical value for the largest over the last axis [DRAWS, ..., P]; NaN is left out."""
    many = int(np.isfinite(draws[0]).sum(-1).max())
    ends = np.fmax.reduce(draws, -1), -np.fmin.reduce(draws, -1)  # and of the negatives
    return _quantile(estimates, np.concatenate(ends), many, level)


def _quantile(
    estimates: Differences, values: Array, many: int, level: float, two_sided: bool = False
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
    drawn = float(np.quantile(values, probability, axis=0).max())
    return max(single, min(drawn, bound))


def _draws(estimates: Differences, seed: int) -> Array:
    """Studentised differences [DRAWS, P] where nothing differs, with the correlation of these."""
    rng = np.random.default_rng(seed)
    influence, pairs = estimates.influence, len(estimates.pseudo)
    scale = np.sqrt((influence**2).sum(0) + estimates.pseudo)
    alone = scale == 0  # pairs without any variation count as independent
    scale[alone] = 1.0
    if len(influence) < pairs:
        draws = rng.standard_normal((DRAWS, len(influence))) @ (influence / scale)
        errors = np.where(alone, 1.0, np.sqrt(estimates.pseudo) / scale)
        draws += rng.standard_normal((DRAWS, pairs)) * errors
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
    estimates: Differences, shape: tuple[int, int]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of S systems may be the best, [S], and which baselines may be that of each, [S, B].

    What is left out is further from the best than CONTENDS standard errors of both.
    """
    low, high = reach(estimates, shape)
    difference, se = estimates.difference.reshape(shape), estimates.se.reshape(shape)
    beyond = (difference + CONTENDS * se).min(1, keepdims=True)
    return high >= low.max(), difference - CONTENDS * se <= beyond


def reach(estimates: Differences, shape: tuple[int, int]) -> tuple[Array, Array]:
    """CONTENDS standard errors around the smallest difference of each system: [S], [S]."""
    difference, se = estimates.difference.reshape(shape), estimates.se.reshape(shape)
    place = np.arange(shape[0]), difference.argmin(1)
    return difference[place] - CONTENDS * se[place], difference[place] + CONTENDS * se[place]
