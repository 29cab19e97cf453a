"""One figure from several worlds: the plain mean, with an interval for worlds of this kind.

Each world gives an estimate and its standard error over the clusters of its items (persons); the
mean over k worlds has the larger of two standard errors, that from within the worlds,
sqrt(sum se_i^2) / k, and that from their spread, sd / sqrt(k), and Student's t with k - 1 degrees
of freedom: the interval of Hartung and Knapp for random effects with equal weights, never
narrower than the items alone allow (Knapp and Hartung 2003 with the usual floor). The interval of a
single world holds for that world alone.

Intervals that hold for many figures at once: differences take the critical value of the largest of
all studentised differences (`evaluation.selection.largest`, with their correlations as the items
show them and k - 1 degrees of freedom), retentions spend alpha / P on each of P (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loraprobe.evaluation import statistics
from loraprobe.evaluation.statistics import Array, Estimates
from loraprobe.records import Interval

ALPHA = 0.05


@dataclass(frozen=True)
class Pooled:
    """A mean over worlds. `ci95` is for this figure, `adjusted_ci95` for all of its table at once.

    `each` holds the worlds' own figures, in their order.
    """

    value: float
    ci95: Interval
    adjusted_ci95: Interval
    worlds: int
    each: tuple[float, ...] = ()


def over_worlds(found: Sequence[Estimates]) -> Estimates:
    """Paired differences of P pairs, each the mean of the worlds' own; see the module.

    The interval lies around the mean as observed: the shift of Bonett and Price's centre, made for
    one sample, would not shrink with the number of worlds while the interval does.
    """
    k = len(found)
    if k == 1:
        return found[0]
    differences = np.stack([one.difference for one in found])
    return Estimates(
        difference=differences.mean(0),
        center=differences.mean(0),
        se=_error(differences, np.stack([one.se for one in found])),
        df=k - 1,
        influence=np.concatenate([one.influence for one in found]) / k,
        pseudo=np.sum([one.pseudo for one in found], axis=0) / k**2,
        n=np.sum([one.n for one in found], axis=0),
        n_effective=np.sum([one.n_effective for one in found], axis=0),
        bounded=all(one.bounded for one in found),
    )


def _error(values: Array, errors: Array) -> Array:
    """Standard error [P] of the mean over worlds of `values` [k, P] with `errors` [k, P]."""
    k = len(values)
    within = np.sqrt((errors**2).sum(0)) / k
    return np.maximum(within, values.std(0, ddof=1) / math.sqrt(k)) if k > 1 else within


def pooled(values: Array, errors: Array, figures: int) -> Pooled:
    """One figure over worlds: `values` [k] with `errors` [k]; `figures` are in the table."""
    k = len(values)
    error = float(_error(values[:, None], errors[:, None])[0])
    mean, df = float(values.mean()), k - 1 if k > 1 else math.inf

    def interval(alpha: float) -> Interval:
        reach = statistics.quantile(1 - alpha / 2, df) * error
        return mean - reach, mean + reach

    return Pooled(mean, interval(ALPHA), interval(ALPHA / figures), k, tuple(values.tolist()))
