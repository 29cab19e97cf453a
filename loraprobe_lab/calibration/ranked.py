"""A calibration on all features at once: a logistic regression on their ranks, heavily regularised.

Every feature is replaced by its place among the training cases (piecewise linear between deciles),
so that outliers and odd scales do no harm, and none is chosen: the l2 penalty spreads the weight
over features that say much the same. What theory puts first, the gain that is expected if the
adapters' effects add, is penalised a hundredth as much: it ranks cases of scenarios that were never
seen, and all others correct it. A feature whose coefficient goes against theory is left out. The
exported file is a table of numbers a feature, evaluated without scikit-learn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from loraprobe.verdict.features import FEATURES
from loraprobe.verdict.terms import CONSTANT
from loraprobe_lab.calibration.cases import FAMILIES, Case, decided
from loraprobe_lab.calibration.measures import likely_threshold
from loraprobe_lab.calibration.model import agree, enough
from loraprobe_lab.calibration.selection import Training, log_loss, logistic
from loraprobe_lab.calibration.support import Range, fit_range
from loraprobe_lab.calibration.terms import Array, medians, values
from loraprobe_lab.calibration.theory import SIGNS

DECILES = np.linspace(0, 1, 11)
STRENGTHS = (0.01, 0.03, 0.1, 0.3)  # C of the logistic regression
FEWEST_PRESENT = 0.1  # share of the cases in which a feature has to be there
RARE = 0.05  # a feature that is missing, or there, more seldom gets no coefficient for that
WATCHED = 8  # features of the largest coefficients, by which the calibrated range is told
# Counts tell scenarios apart and say nothing of a new one; geometry is near chance within them;
# Min-K%++ explodes on bases that are certain.
LEFT_OUT = ("task", "weights")
UNSTABLE = "min_k_plus_plus"
LEADING = ("expected_gain", "expected_gain_chance")
LEAD = 10.0  # their columns are so much larger for the fit, the penalty its square smaller


@dataclass(frozen=True)
class Column:
    """One feature on the scale of its ranks.

    levels: the places in [0, 1] of the knots; mean and scale standardise them over the cases that
    have the feature, the others stand at the mean. absent: share and standard deviation of being
    missing, None where that gets no coefficient.
    """

    feature: str
    knots: Array
    levels: Array
    mean: float
    scale: float
    absent: tuple[float, float] | None

    @classmethod
    def of(cls, feature: str, cases: Sequence[Case]) -> Column | None:
        """The column that training cases give; None where a feature is rare or never varies."""
        raw = values(cases, feature)
        seen = raw[~np.isnan(raw)]
        if len(seen) < max(2, FEWEST_PRESENT * len(raw)):
            return None
        at = np.quantile(seen, DECILES)
        knots = np.unique(at)
        if len(knots) < 2:
            return None
        levels = np.array([DECILES[at == knot].mean() for knot in knots])
        places = np.interp(seen, knots, levels)
        if places.std() < 1e-9:
            return None
        missing = float(np.isnan(raw).mean())
        spread = (missing * (1 - missing)) ** 0.5
        absent = (missing, spread) if RARE <= missing <= 1 - RARE else None
        return cls(feature, knots, levels, float(places.mean()), float(places.std()), absent)

    def design(self, cases: Sequence[Case]) -> Array:
        """[cases, 1 or 2]: the standardised place, and being missing."""
        raw = values(cases, self.feature)
        gone = np.isnan(raw)
        z = (np.interp(np.nan_to_num(raw), self.knots, self.levels) - self.mean) / self.scale
        columns = [np.where(gone, 0.0, z)]
        if self.absent is not None:
            columns.append((gone - self.absent[0]) / self.absent[1])
        return np.column_stack(columns)

    @property
    def width(self) -> int:
        """How many columns of the design are this feature's."""
        return 1 if self.absent is None else 2

    @property
    def lead(self) -> float:
        """By what the design is multiplied for the fit."""
        return LEAD if self.feature in LEADING else 1.0

    def document(self, w: Array, cases: Sequence[Case]) -> dict[str, Any]:
        """The term as the calibration file has it; w: [width], the coefficients."""
        there = gone = 0.0
        if self.absent is not None:
            share, spread = self.absent
            there, gone = float(w[1] * -share / spread), float(w[1] * (1 - share) / spread)
        document: dict[str, Any] = {
            "feature": self.feature,
            "family": None,
            "transform": "rank",
            "coefficient": float(w[0]),
            "knots": self.knots.tolist(),
            "values": (there + w[0] * (self.levels - self.mean) / self.scale).tolist(),
            "missing": gone,
        }
        if (typical := medians(cases, self.feature)) is not None:
            document["typical"] = typical
        return document


@dataclass(frozen=True)
class Model:
    """Columns with their coefficients, and an intercept for each family of compositions."""

    columns: tuple[Column, ...]
    w: tuple[Array, ...]
    families: Mapping[str, float]
    intercept: float

    @classmethod
    def of(cls, cases: Sequence[Case], strength: float, signs: Mapping[str, int]) -> Model:
        """Fits; features whose coefficients go against `signs` are left out, and it fits again."""
        y = np.array([float(case.label or 0) for case in cases])
        columns = [c for c in (Column.of(name, cases) for name in usable(cases)) if c is not None]
        while True:
            X = np.column_stack([_families(cases), *(c.design(cases) * c.lead for c in columns)])
            fitted: Any = logistic(X, y, strength)
            found = fitted.coef_[0]
            ends = np.cumsum([len(FAMILIES), *(c.width for c in columns)])
            parts = [found[a:b] for a, b in pairwise(ends)]
            w = [part * c.lead for part, c in zip(parts, columns, strict=True)]
            right = [
                signs.get(c.feature, 0) * own[0] >= 0 for c, own in zip(columns, w, strict=True)
            ]
            if all(right):
                families = dict(zip(FAMILIES, map(float, found), strict=False))
                return cls(tuple(columns), tuple(w), families, float(fitted.intercept_[0]))
            columns = [c for c, keep in zip(columns, right, strict=True) if keep]

    def logits(self, cases: Sequence[Case]) -> Array:
        """[cases]"""
        total = self.intercept + np.array([self.families[case.family] for case in cases])
        for column, w in zip(self.columns, self.w, strict=True):
            total = total + column.design(cases) @ w
        return total


@dataclass(frozen=True)
class Ranked:
    """A fitted model on ranks; what `model.Fitted` is for few chosen terms."""

    model: Model
    strength: float
    prior: float
    range: Range
    threshold: float
    out_of_fold: Array
    cases: tuple[Case, ...]
    path: tuple[tuple[str, float], ...]

    def logits(self, cases: Sequence[Case]) -> Array:
        """[cases]"""
        return self.model.logits(cases)

    def predict(self, cases: Sequence[Case]) -> Array:
        """The probability of each case, inside the calibrated range or not: [cases]."""
        return 1 / (1 + np.exp(-self.logits(cases)))

    def document(
        self, provenance: Mapping[str, Any], accuracy: Mapping[str, Any], margin: float
    ) -> dict[str, Any]:
        """The calibration file. Raises LoraprobeError if it does not say what the model says."""
        present = {case.family for case in self.cases}
        model = self.model
        order = np.argsort([-abs(w[0]) for w in model.w], kind="stable")
        constants = [
            {"feature": CONSTANT, "family": name, "transform": "rank", "coefficient": value,
             "knots": [1.0], "values": [value]}
            for name, value in model.families.items() if name in present
        ]  # fmt: skip
        terms = [model.columns[k].document(model.w[k], self.cases) for k in order]
        document = {
            "format": 1,
            "provenance": dict(provenance),
            "prior": self.prior,
            "margin": margin,
            "families": [family for family in FAMILIES if family in present],
            "model": {"kind": "additive", "intercept": model.intercept,
                      "terms": [*terms, *constants]},
            "support": self.range.document(),
            "likely_from": self.threshold,
            "accuracy": dict(accuracy),
        }  # fmt: skip
        agree(document, self.cases, self.logits(self.cases), self.range)
        return document


def usable(cases: Sequence[Case]) -> list[str]:
    """Names of the features that go in, sorted."""
    names = {name for case in cases for name in case.features}
    return [
        name
        for name in sorted(names)
        if name in FEATURES
        and FEATURES[name].group not in LEFT_OUT
        and not name.startswith(UNSTABLE)
    ]


def fit_ranked(
    cases: Sequence[Case], *, signs: Mapping[str, int] = SIGNS, most_wrong: float = 0.05
) -> Ranked:
    """Fits on decided cases of training bases. Raises CaseError for too few cases."""
    own = decided(cases)
    training = Training.of(own)
    enough(training.y)
    tried = [(C, _out_of_fold(training, C, signs)) for C in STRENGTHS]
    losses = [log_loss(training.y, p) for _, p in tried]
    strength, out_of_fold = tried[int(np.argmin(losses))]
    model = Model.of(own, strength, signs)
    largest = np.argsort([-abs(w[0]) for w in model.w], kind="stable")[:WATCHED]
    watched = {model.columns[k].feature: "identity" for k in largest}
    prior = float(training.y.mean())
    path = [("prior", log_loss(training.y, np.full(len(own), prior)))]
    path += [
        (f"all features on ranks, C = {C}", x) for (C, _), x in zip(tried, losses, strict=True)
    ]
    return Ranked(
        model, strength, prior, fit_range(own, watched),
        likely_threshold(training.y, out_of_fold, most_wrong), out_of_fold, tuple(own), tuple(path),
    )  # fmt: skip


def _out_of_fold(training: Training, strength: float, signs: Mapping[str, int]) -> Array:
    """Probabilities by fits without the case's group of bases, ranks included: [cases]."""
    p = np.full(len(training.y), float(training.y.mean()))
    for kept, test in training.left_out():
        model = Model.of([c for c, k in zip(training.cases, kept, strict=True) if k],
                         strength, signs)  # fmt: skip
        own = [c for c, k in zip(training.cases, test, strict=True) if k]
        p[test] = 1 / (1 + np.exp(-model.logits(own)))
    return p


def _families(cases: Sequence[Case]) -> Array:
    return np.array([[float(case.family == family) for family in FAMILIES] for case in cases])
