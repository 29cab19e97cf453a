"""How good predicted probabilities are, with bootstrap intervals over bases.

All functions take `y` [cases] of 0 and 1 and `p` [cases] in [0, 1]. The headline is the AUROC
*within* scenario, averaged over scenarios: pooled AUROC also rewards knowing which scenario a case
is from, which a user knows without any tool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]
Metric = Callable[["Scored"], float]
BINS = 10


@dataclass(frozen=True)
class Scored:
    """Decided cases with their predictions; all arrays are [cases].

    `cluster` is what the bootstrap draws (bases; adapter sets where all share one base), `headline`
    says which cases are from cells of two classes, `supported` which lie inside the calibrated
    range, `likely` which of those are called so.
    """

    y: Array
    p: Array
    scenario: NDArray[np.str_]
    cluster: NDArray[np.str_]
    headline: NDArray[np.bool_]
    supported: NDArray[np.bool_]
    likely: NDArray[np.bool_]

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> Scored:
        """Some of the cases, possibly repeated."""
        return Scored(*(getattr(self, field.name)[index] for field in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Scored]) -> Scored:
        """Cases of several splits together."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Figure:
    """A measured figure and its 95 % interval; NaN where it is not defined."""

    value: float
    low: float
    high: float


def auroc(y: Array, p: Array) -> float:
    """Probability that a success is ranked above a failure, ties counting half; NaN of one class.

    The Mann-Whitney U divided by the number of pairs.
    """
    successes = y == 1
    n1 = int(successes.sum())
    n0 = len(y) - n1
    if n1 == 0 or n0 == 0:
        return float("nan")
    ranks = rankdata(p)
    return float((ranks[successes].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def auroc_within(scored: Scored) -> float:
    """AUROC within each scenario over its two-class cells, the plain mean of the scenarios."""
    found = list(aurocs_by_scenario(scored).values())
    return float(np.mean(found)) if found else float("nan")


def aurocs_by_scenario(scored: Scored) -> dict[str, float]:
    """scenario -> AUROC over its two-class cells, where both classes are present."""
    found = {}
    for name in np.unique(scored.scenario):
        chosen = (scored.scenario == name) & scored.headline
        value = auroc(scored.y[chosen], scored.p[chosen])
        if np.isfinite(value):
            found[str(name)] = value
    return found


def auroc_pooled(scored: Scored) -> float:
    """AUROC over all cases together."""
    return auroc(scored.y, scored.p)


def brier(scored: Scored) -> float:
    """Mean squared error of the probability."""
    return float(np.mean((scored.p - scored.y) ** 2)) if len(scored) else float("nan")


def ece(scored: Scored) -> float:
    """Expected calibration error over bins of equal mass."""
    rows = reliability(scored)
    total = sum(n for _, _, n in rows)
    return sum(n * abs(p - y) for p, y, n in rows) / total if total else float("nan")


def reliability(scored: Scored, bins: int = BINS) -> list[tuple[float, float, int]]:
    """(mean probability, share of successes, cases) of bins of equal mass, lowest first."""
    order = np.argsort(scored.p, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return [(float(scored.p[i].mean()), float(scored.y[i].mean()), len(i)) for i in parts]


def wrong_calls(scored: Scored) -> float:
    """Share of wrong ones among the cases called `likely`; NaN where none is called."""
    chosen = scored.likely
    return float(1 - scored.y[chosen].mean()) if chosen.any() else float("nan")


def called(scored: Scored) -> float:
    """Share of the true successes that are called `likely`."""
    successes = scored.y == 1
    if not successes.any():
        return float("nan")
    return float(scored.likely[successes].mean())


def answered(scored: Scored) -> float:
    """Share of cases that get a probability at all."""
    return float(scored.supported.mean()) if len(scored) else float("nan")


METRICS: dict[str, Metric] = {
    "auroc_within": auroc_within,
    "auroc_pooled": auroc_pooled,
    "brier": brier,
    "ece": ece,
    "wrong_calls": wrong_calls,
    "called": called,
    "answered": answered,
}


def likely_threshold(y: Array, p: Array, most_wrong: float = 0.05, fewest: int = 10) -> float:
    """The smallest probability from which at most so many of the called cases are wrong.

    Only cuts at observed probabilities are tried, and only those that call at least `fewest` cases,
    so that a lucky few do not decide. Above 1 where there is none.
    """
    best = 1.0 + 1e-9
    for cut in np.unique(p)[::-1]:
        called_ = p >= cut
        if called_.sum() >= fewest and 1 - y[called_].mean() <= most_wrong:
            best = float(cut)
    return best


def draws(clusters: NDArray[np.str_], count: int, seed: int) -> list[NDArray[np.int64]]:
    """Indices of `count` bootstrap samples of whole clusters."""
    rng = np.random.default_rng(seed)
    names, index = np.unique(clusters, return_inverse=True)
    members = [np.flatnonzero(index == k) for k in range(len(names))]
    return [
        np.concatenate([members[k] for k in rng.integers(len(names), size=len(names))])
        for _ in range(count)
    ]


def with_interval(scored: Scored, metric: Metric, samples: Sequence[NDArray[np.int64]]) -> Figure:
    """A figure with the percentile interval over bootstrap samples in which it is defined."""
    return _figure(metric(scored), [metric(scored.take(index)) for index in samples])


def difference(
    model: Scored, other: Scored, metric: Metric, samples: Sequence[NDArray[np.int64]]
) -> Figure:
    """model - other on the same cases, with its paired bootstrap interval."""
    return _figure(
        metric(model) - metric(other),
        [metric(model.take(index)) - metric(other.take(index)) for index in samples],
    )


def _figure(value: float, drawn: list[float]) -> Figure:
    finite = [one for one in drawn if np.isfinite(one)]
    if len(finite) < max(2, len(drawn) // 2):
        return Figure(value, float("nan"), float("nan"))
    low, high = np.quantile(finite, [0.025, 0.975])
    return Figure(value, float(low), float(high))


def summary(
    scored: Scored, count: int = 1000, seed: int = 0, names: Sequence[str] = tuple(METRICS)
) -> dict[str, Figure]:
    """These metrics, each with its interval."""
    samples = draws(scored.cluster, count, seed) if len(scored) else []
    return {name: with_interval(scored, METRICS[name], samples) for name in names}
