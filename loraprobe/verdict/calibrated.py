"""The calibrated probability: a readable file of coefficients, evaluated without any library.

`calibration.json` beside this file is the calibration that ships with the package; there may be
none. `loraprobe lab calibrate` writes such files. One document:

format      1
provenance  what made it: "made_by", "loraprobe", "worlds", "cases", "bases" ...
prior       share of successes among the cases it was fitted on
margin      the gain that counts as success
families    which families of composition it covers: "average", "sum", "router"
model       {"kind": "logistic" | "additive", "intercept": number, "terms": [...]}
            every term: "feature" (or "constant"), "family" (null: all), "missing",
            optional "typical": {"failure": median, "success": median}
            logistic: "transform", "mean", "scale", "coefficient", optional "range"; missing
            stands for z, the transformed, centred and scaled value
            additive: "knots", "values", "shape" ("linear" or "step"); missing is a logit
            missing null: without the feature there is no probability
support     "ranges" {feature: [lowest, highest]}; "features", "center", "precision",
            "threshold", optional "transforms" {feature: transform}: see `support`
likely_from optional: the probability from which a case was called likely when it was measured
accuracy    "where" (such as "held-out bases"), and "auroc", "brier", "ece" ...: each a number
            or {"value": number, "ci95": [low, high]}

The logit is intercept + the sum of the terms' contributions (see `terms`). Another prior q
multiplies the odds by q / (1 - q) over p / (1 - p), with p the file's own.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraprobe.errors import UsageError
from loraprobe.verdict.evidence import Evidence
from loraprobe.verdict.features import FAMILIES, FEATURES, features
from loraprobe.verdict.support import Support, read_support
from loraprobe.verdict.terms import CONSTANT, Term, read_term

FILE = "calibration.json"
Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Contribution:
    """What one feature adds to the logit. `typical`: its median in (failures, successes)."""

    feature: str
    value: float | None
    logit: float
    typical: tuple[float, float] | None = None


@dataclass(frozen=True)
class Prediction:
    """The probability that a composition of one family gains more than the margin.

    None where the case is not supported; `why_not` says why. `logit` is what the model would say
    for the file's own prior all the same, None where it cannot say anything.
    """

    family: str
    probability: float | None
    prior: float
    contributions: tuple[Contribution, ...] = ()
    supported: bool = True
    why_not: str = ""
    logit: float | None = None


@dataclass(frozen=True)
class Calibration:
    """A calibration file in memory."""

    prior: float
    margin: float
    families: tuple[str, ...]
    intercept: float
    terms: tuple[Term, ...]
    support: Support = field(default_factory=Support)
    accuracy: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    likely_from: float | None = None

    def predict(self, values: Values, family: str, prior: float | None = None) -> Prediction:
        """One family of composition on one case, described by its features.

        prior: share of successes expected where the case comes from, in (0, 1); None: the file's.
        """
        aim = self.prior if prior is None else prior
        if family not in self.families:
            why = f"compositions of the family {family} are not covered"
            return Prediction(family, None, aim, supported=False, why_not=why)
        parts, missing = [], []
        for term in (t for t in self.terms if t.counts_for(family)):
            value = 1.0 if term.feature == CONSTANT else values.get(term.feature)
            logit = term.logit(value)
            if logit is None:
                missing.append(term.feature)
            else:
                parts.append(Contribution(term.feature, value, logit, term.typical))
        if missing:
            names = " and ".join(dict.fromkeys(missing))
            why = f"it needs {names}, which could not be measured here"
            return Prediction(family, None, aim, _by_feature(parts), False, why)
        logit = self.intercept + math.fsum(part.logit for part in parts)
        why = self.support.why_outside(values)
        shifted = logit + _log_odds(aim) - _log_odds(self.prior)
        return Prediction(
            family, None if why else _sigmoid(shifted), aim, _by_feature(parts), not why, why, logit
        )

    def some_composition(
        self, evidence: Evidence, families: Iterable[str] = FAMILIES, prior: float | None = None
    ) -> Prediction:
        """The most promising family: no less than this is the probability that some of them gains.

        Where no family is supported, why the first is not. Raises ValueError without families.
        """
        found = [self.predict(features(evidence, f), f, prior) for f in families]
        return max(found, key=lambda p: -1.0 if p.probability is None else p.probability)


def _by_feature(parts: Iterable[Contribution]) -> tuple[Contribution, ...]:
    """Several terms of one feature as one contribution, the largest first, no constants."""
    sums: dict[str, Contribution] = {}
    for part in parts:
        if part.feature == CONSTANT:
            continue
        before = sums.get(part.feature)
        logit = part.logit + (before.logit if before else 0.0)
        typical = part.typical or (before.typical if before else None)
        sums[part.feature] = Contribution(part.feature, part.value, logit, typical)
    return tuple(sorted(sums.values(), key=lambda part: (-abs(part.logit), part.feature)))


def _log_odds(share: float) -> float:
    return math.log(share) - math.log1p(-share)


def _sigmoid(logit: float) -> float:
    if logit >= 0:
        return 1 / (1 + math.exp(-logit))
    return math.exp(logit) / (1 + math.exp(logit))


@functools.cache
def shipped() -> Calibration | None:
    """The calibration that the package brings along; None if it brings none."""
    file = importlib.resources.files("loraprobe.verdict") / FILE
    if not file.is_file():
        return None
    return _parsed(file.read_text(encoding="utf-8"), f"loraprobe's own {FILE}")


def read_calibration(path: str | Path) -> Calibration:
    """A calibration file that somebody names. Raises UsageError where it is none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read as a calibration ({type(error).__name__}); "
            "`loraprobe lab calibrate` writes one."
        ) from None
    return _parsed(text, str(path))


def _parsed(text: str, name: str) -> Calibration:
    try:
        return calibration_of(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        missing = isinstance(error, KeyError)
        what = f"it lacks {error}" if missing else str(error)
        raise UsageError(
            f"{name} is no calibration of format 1: {what}; `loraprobe lab calibrate` writes one."
        ) from None


def calibration_of(document: Mapping[str, Any]) -> Calibration:
    """A calibration from its document. Raises ValueError or KeyError saying what is wrong."""
    if not isinstance(document, Mapping) or document.get("format") != 1:
        raise ValueError("its format is not 1")
    model, families = document["model"], tuple(document["families"])
    if model["kind"] not in ("logistic", "additive"):
        raise ValueError(f"the kind {model['kind']!r} is neither logistic nor additive")
    terms = tuple(read_term(model["kind"], given) for given in model["terms"])
    unknown = {t.feature for t in terms} - {CONSTANT, *FEATURES}
    strange = {*families, *(t.family for t in terms if t.family)} - set(FAMILIES)
    if unknown or strange:
        names = ", ".join(sorted(unknown | strange))
        raise ValueError(f"it speaks of features or families that are not known: {names}")
    prior, margin, intercept = (
        float(x) for x in (document["prior"], document["margin"], model["intercept"])
    )
    if not 0 < prior < 1 or not math.isfinite(margin) or not math.isfinite(intercept):
        raise ValueError("its prior, margin or intercept is out of range")
    return Calibration(
        prior, margin, families, intercept, terms, read_support(document.get("support", {})),
        document.get("accuracy", {}), document.get("provenance", {}), document.get("likely_from"),
    )  # fmt: skip


def predict(
    values: Values, family: str, prior: float | None = None, calibration: Calibration | None = None
) -> Prediction:
    """`Calibration.predict` of the shipped calibration, or of the one that is given."""
    chosen = calibration or shipped()
    if chosen is None:
        return Prediction(family, None, prior or math.nan, (), False, NONE_SHIPPED)
    return chosen.predict(values, family, prior)


NONE_SHIPPED = "this loraprobe ships no calibration"
