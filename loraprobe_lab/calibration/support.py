"""The calibrated range: which cases lie so near to the training cases that a probability is given.

Each feature has to lie in its range, a little widened, and all together have to lie near their
centre by a Mahalanobis distance with a shrunk covariance (Ledoit and Wolf 2004). The threshold is
a quantile of the distances of training cases from fits that had left out their bases, so that a new
base of the same kind is rejected about as often as the quantile says. Missing features count as the
centre.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loraprobe_lab.calibration.cases import Case
from loraprobe_lab.calibration.optional import need
from loraprobe_lab.calibration.selection import Training
from loraprobe_lab.calibration.terms import Array, Mask, transformed, values

QUANTILE = 0.98  # of the distances of training cases on bases left out
SLACK = 0.1  # of a range's width, on either side


@dataclass(frozen=True)
class Range:
    """The calibrated range of `features`, each on its scale in `transforms`."""

    features: tuple[str, ...]
    transforms: Mapping[str, str]
    center: Array
    precision: Array
    threshold: float
    ranges: Mapping[str, tuple[float, float]]

    def distances(self, cases: Sequence[Case]) -> Array:
        """Squared Mahalanobis distances: [cases]."""
        apart = np.nan_to_num(_scaled(cases, self.features, self.transforms) - self.center)
        return np.einsum("ni,ij,nj->n", apart, self.precision, apart)

    def inside(self, cases: Sequence[Case]) -> Mask:
        """Whether each case gets a probability: [cases] of bool."""
        near: Mask = self.distances(cases) <= self.threshold
        for name, (low, high) in self.ranges.items():
            raw = values(cases, name)
            near &= np.isnan(raw) | ((raw >= low) & (raw <= high))
        return near

    def document(self) -> dict[str, Any]:
        """As the calibration file has it."""
        return {
            "method": "mahalanobis",
            "features": list(self.features),
            "transforms": dict(self.transforms),
            "center": self.center.tolist(),
            "precision": self.precision.tolist(),
            "threshold": self.threshold,
            "ranges": {name: list(ends) for name, ends in self.ranges.items()},
        }


def fit_range(cases: Sequence[Case], transforms: Mapping[str, str]) -> Range:
    """The range of these features over training cases. transforms: feature -> scale."""
    features = tuple(transforms)
    center, precision = _geometry(_scaled(cases, features, transforms))
    training = Training.of(cases)
    distances = np.zeros(len(cases))
    for k in np.unique(training.group) if features else ():
        apart, own = training.group != k, training.group == k
        if apart.sum() < 2:
            continue
        at, inverse = _geometry(_scaled(cases, features, transforms)[apart])
        x = np.nan_to_num(_scaled(cases, features, transforms)[own] - at)
        distances[own] = np.einsum("ni,ij,nj->n", x, inverse, x)
    threshold = float(np.quantile(distances, QUANTILE)) if features else float("inf")
    ranges = {name: _widened(values(cases, name)) for name in features}
    return Range(features, dict(transforms), center, precision, threshold, ranges)


def _scaled(cases: Sequence[Case], features: Sequence[str], transforms: Mapping[str, str]) -> Array:
    if not features:
        return np.zeros((len(cases), 0))
    return np.column_stack([transformed(values(cases, f), transforms[f]) for f in features])


def _geometry(x: Array) -> tuple[Array, Array]:
    """Centre and inverse of the shrunk covariance of rows; missing values count as the centre."""
    if x.shape[1] == 0:
        return np.zeros(0), np.zeros((0, 0))
    center = np.nanmean(x, axis=0)
    apart = np.nan_to_num(x - center)
    scale = np.maximum(apart.std(0), 1e-9)  # shrinking is towards a sphere: of like units
    shrunk = need("sklearn.covariance").LedoitWolf(assume_centered=True).fit(apart / scale)
    return center, shrunk.precision_ / np.outer(scale, scale)


def _widened(raw: Array) -> tuple[float, float]:
    low, high = float(np.nanmin(raw)), float(np.nanmax(raw))
    slack = SLACK * (high - low)
    return low - slack, high + slack
