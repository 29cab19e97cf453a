"""Terms: what of a case goes into the model, on which scale, and with which sign.

A term is a feature on a scale, for all families of method or for one of them. Its column holds
(t(x) - mean) / scale with t the transform; where the feature is missing, or the case is of another
family, it holds 0, which is the typical value. The pseudo-feature "constant" is 1 everywhere, so
that a family can have an intercept of its own. What a column is, is what `loraprobe.verdict.terms`
makes of the exported term; exporting checks that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loraprobe.verdict.terms import CONSTANT, EDGE
from loraprobe_lab.calibration.cases import FAMILIES, Case

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
FEWEST_PRESENT = 0.5  # share of the cases in which a feature has to be there


@dataclass(frozen=True)
class Candidate:
    """A feature on a scale: "identity", "log1p" (odd: sign(x) log(1 + |x|)) or "logit"."""

    feature: str
    transform: str = "identity"
    family: str | None = None


@dataclass(frozen=True)
class Term:
    """A candidate with the standardisation that training cases gave it."""

    feature: str
    transform: str
    family: str | None
    mean: float
    scale: float
    low: float
    high: float

    def column(self, cases: Sequence[Case]) -> Array:
        """The standardised values: [cases]."""
        raw = values(cases, self.feature)
        z = (transformed(raw, self.transform) - self.mean) / self.scale
        return np.where(np.isnan(raw) | ~_applies(cases, self.family), 0.0, z)

    def document(self, coefficient: float, cases: Sequence[Case]) -> dict[str, Any]:
        """The term as the calibration file has it, with the medians of both classes of cases."""
        own = [case for case in cases if self.family in (None, case.family)]
        document: dict[str, Any] = {
            "feature": self.feature,
            "family": self.family,
            "transform": self.transform,
            "mean": self.mean,
            "scale": self.scale,
            "missing": 0.0,
            "coefficient": coefficient,
            "range": [self.low, self.high],
        }
        if (typical := medians(own, self.feature)) is not None:
            document["typical"] = typical
        return document


def medians(cases: Sequence[Case], feature: str) -> dict[str, float] | None:
    """A feature's median of failures and of successes; None where a class has none."""
    found = {}
    for name, label in (("failure", 0), ("success", 1)):
        median = _median(values([case for case in cases if case.label == label], feature))
        if median is None:
            return None
        found[name] = median
    return found


def values(cases: Sequence[Case], feature: str) -> Array:
    """A feature's values as measured, NaN where it is missing: [cases]."""
    if feature == CONSTANT:
        return np.ones(len(cases))
    found = (case.features.get(feature) for case in cases)
    return np.array([np.nan if x is None else float(x) for x in found])


def transformed(x: Array, transform: str) -> Array:
    """x on the scale of a transform."""
    if transform == "logit":
        share = np.clip(x, EDGE, 1 - EDGE)
        return np.log(share / (1 - share))
    if transform == "log1p":
        return np.sign(x) * np.log1p(np.abs(x))
    return x


def fit_term(candidate: Candidate, cases: Sequence[Case]) -> Term | None:
    """A candidate standardised on training cases.

    None where the feature is there in too few of the cases it is about, or never varies.
    """
    raw = values(cases, candidate.feature)
    own = _applies(cases, candidate.family)
    if candidate.feature == CONSTANT:
        return Term(CONSTANT, "identity", candidate.family, 0.0, 1.0, 1.0, 1.0)
    seen = raw[own & ~np.isnan(raw)]
    if len(seen) < max(2, FEWEST_PRESENT * own.sum()):
        return None
    scaled = transformed(seen, candidate.transform)
    scale = float(scaled.std())
    if scale < 1e-9:
        return None
    return Term(
        candidate.feature, candidate.transform, candidate.family,
        float(scaled.mean()), scale, float(seen.min()), float(seen.max()),
    )  # fmt: skip


def candidates(cases: Sequence[Case], features: Iterable[str] | None = None) -> list[Candidate]:
    """Every feature on every scale that suits it, for all families and for each alone."""
    names = sorted({name for case in cases for name in case.features})
    if features is not None:
        names = [name for name in names if name in set(features)]
    present = {case.family for case in cases}
    families = [None, *(f for f in FAMILIES if f in present and len(present) > 1)]
    intercepts = [Candidate(CONSTANT, "identity", family) for family in families if family]
    return intercepts + [
        Candidate(name, transform, family)
        for name in names
        for transform in _scales(values(cases, name))
        for family in families
    ]


def _scales(raw: Array) -> list[str]:
    seen = raw[~np.isnan(raw)]
    if not len(seen):
        return []
    if seen.min() >= 0 and seen.max() <= 1:
        return ["identity", "logit"]
    return ["identity", "log1p"] if np.abs(seen).max() > 3 else ["identity"]


def _median(found: Array) -> float | None:
    seen = found[~np.isnan(found)]
    return float(np.median(seen)) if len(seen) else None


def _applies(cases: Sequence[Case], family: str | None) -> Mask:
    return np.array([family is None or case.family == family for case in cases], dtype=bool)
