"""Whether a case lies within what a calibration has seen.

Two tests, both of which a case has to pass: each feature lies in the range of the calibration's
cases, and all together lie near their centre: d^2 = (x - c)^T P (x - c) is at most a threshold,
with P the inverse of a shrunk covariance. A feature that was not measured counts as the centre.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loraprobe.records import Interval
from loraprobe.verdict.features import FEATURES
from loraprobe.verdict.terms import TRANSFORMS

Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Support:
    """The calibrated range. `transforms`: feature -> what is done before distances are taken."""

    ranges: Mapping[str, Interval] = field(default_factory=dict)
    features: tuple[str, ...] = ()
    center: tuple[float, ...] = ()
    precision: tuple[tuple[float, ...], ...] = ()
    threshold: float = math.inf
    transforms: Mapping[str, str] = field(default_factory=dict)

    def distance(self, values: Values) -> tuple[float, str | None]:
        """d^2, and the feature that contributes most to it."""
        apart = [
            0.0
            if values.get(name) is None
            else TRANSFORMS[self.transforms.get(name, "identity")](float(values[name] or 0.0)) - at
            for name, at in zip(self.features, self.center, strict=True)
        ]
        shares = [
            x * sum(p * y for p, y in zip(row, apart, strict=True))
            for x, row in zip(apart, self.precision, strict=True)
        ]
        if not shares:
            return 0.0, None
        return sum(shares), self.features[shares.index(max(shares))]

    def why_outside(self, values: Values) -> str:
        """What lies outside, and by how much; empty if nothing does."""
        beyond = []
        for name, (low, high) in self.ranges.items():
            value = values.get(name)
            if value is not None and not low <= value <= high:
                by = low - value if value < low else value - high
                beyond.append((by / ((high - low) or 1.0), name, value, low, high, by))
        if beyond:
            _, name, value, low, high, by = max(beyond)
            more = f" ({len(beyond)} features do)" if len(beyond) > 1 else ""
            return (
                f"{name} ({FEATURES[name].description}) is {value:.3g}, {by:.2g} outside the "
                f"calibrated range of {low:.3g} to {high:.3g}{more}"
            )
        distance, name_ = self.distance(values)
        if distance > self.threshold and name_ is not None:
            return (
                "each feature lies in its calibrated range, but not all together: their squared "
                f"distance from the calibrated cases is {distance:.3g}, the limit "
                f"{self.threshold:.3g}, and most of it comes from {name_} "
                f"({FEATURES[name_].description}), which is {values[name_] or 0.0:.3g}"
            )
        return ""


def read_support(given: Mapping[str, Any]) -> Support:
    """The "support" of a calibration file. Raises ValueError saying what is wrong with it."""
    features = tuple(given.get("features", ()))
    made = Support(
        ranges={name: (ends[0], ends[1]) for name, ends in given.get("ranges", {}).items()},
        features=features,
        center=tuple(given.get("center", ())),
        precision=tuple(tuple(row) for row in given.get("precision", ())),
        threshold=given.get("threshold", math.inf) if features else math.inf,
        transforms=dict(given.get("transforms", {})),
    )
    _refuse_unknown((*features, *made.ranges, *made.transforms))
    if any(t not in TRANSFORMS or t in ("clip", "missing") for t in made.transforms.values()):
        raise ValueError("its support transforms features in a way that is not known")
    n = len(features)
    if len(made.center) != n or [len(row) for row in made.precision] != [n] * n:
        raise ValueError("the centre and the precision of its support do not fit its features")
    return made


def _refuse_unknown(names: Sequence[str]) -> None:
    unknown = sorted(set(names) - set(FEATURES))
    if unknown:
        raise ValueError(f"it speaks of features that are not known: {', '.join(unknown)}")
