"""The calibrated probability of a verdict, with a reason for each feature that moves it most.

It is about what could be known before any composition was run, on the levels `base` and
`evaluation` alike; it never changes a decision.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from loraprobe.records import Reason, Verdict
from loraprobe.verdict import words
from loraprobe.verdict.calibrated import (
    NONE_SHIPPED,
    Calibration,
    Contribution,
    Prediction,
)
from loraprobe.verdict.evidence import BASELINES, Evidence
from loraprobe.verdict.features import FEATURES

LEVELS = ("base", "evaluation")
MOST_REASONS, FEWEST_REASONS = 5, 3
WORTH_A_WORD = 0.25  # of the logit: odds change by more than a quarter
HOW = {"average": "averaging them", "sum": "summing them", "router": "routing between them"}


def with_probability(
    verdict: Verdict, evidence: Evidence, calibration: Calibration | None
) -> tuple[Verdict, list[Reason]]:
    """The verdict with its probability and prior, and the reasons that go with them."""
    if verdict.evidence not in LEVELS:
        return verdict, []
    if calibration is None:
        return verdict, [_not_calibrated()]
    why_not = _not_asked(evidence, calibration)
    if why_not:
        return verdict, [_outside(why_not)]
    found = calibration.some_composition(evidence, evidence.families, evidence.prior)
    if found.probability is None:
        return verdict, [_outside(found.why_not)]
    verdict = dataclasses.replace(verdict, probability=found.probability, prior=found.prior)
    return verdict, [_calibrated(found, calibration), *_contributing(found)]


def _not_asked(evidence: Evidence, calibration: Calibration) -> str:
    """Why the question is not the one that was calibrated; empty if it is."""
    if evidence.losses:
        return "scores are losses, and it is about answers that are right or wrong"
    if not math.isclose(evidence.margin, calibration.margin, abs_tol=1e-9):
        return (
            f"it is about gains beyond {calibration.margin:g}, and the margin asked for is "
            f"{evidence.margin:g}"
        )
    if not evidence.families:
        return "none of the compositions asked for is of a kind that it covers"
    if not evidence.systems(BASELINES):
        return "base and single adapters were not scored on a task"
    return ""


def _not_calibrated() -> Reason:
    return Reason(
        "not-calibrated",
        f"No probability is given: {NONE_SHIPPED}.",
        source="a probability comes from a calibration on compositions whose outcome was measured",
    )


def _outside(why: str) -> Reason:
    return Reason(
        "outside-calibration",
        f"No probability is given, since the calibration does not cover this case: {why}.",
        source="a calibration speaks of cases like those that it was made on",
    )


def _calibrated(found: Prediction, calibration: Calibration) -> Reason:
    margin, cases = words.number(calibration.margin), calibration.provenance.get("cases")
    text = (
        f"Probability {words.number(found.probability or 0.0)} that some composition gains more "
        f"than {margin} (prior {words.number(found.prior)}), most likely by {HOW[found.family]}, "
        "judged from base, single adapters and coverage before any composition was run"
    )
    told = _accuracy(calibration.accuracy)
    return Reason(
        "calibrated",
        f"{text}{'; ' + told if told else ''}.",
        found.probability,
        calibration.likely_from,
        f"calibration on {cases} compositions (--prior)" if cases else "calibration (--prior)",
    )


def _accuracy(accuracy: Mapping[str, Any]) -> str:
    """AUROC 0.95 [0.91, 0.98], Brier score 0.06 on held-out bases; empty if nothing is told."""
    names = {"auroc": "AUROC", "brier": "Brier score", "ece": "calibration error"}
    told = []
    for key, name in names.items():
        given = accuracy.get(key)
        value = given.get("value") if isinstance(given, Mapping) else given
        ci95 = given.get("ci95") if isinstance(given, Mapping) else None
        if isinstance(value, (int, float)) and math.isfinite(value):
            told.append(
                f"{name} {words.number(value)}" + (f" {words.interval(*ci95)}" if ci95 else "")
            )
    where = accuracy.get("where")
    return f"{', '.join(told)} on {where}" if told and where else ""


def _contributing(found: Prediction) -> list[Reason]:
    """The features that move the logit most: three, up to five where they still matter."""
    moved = [part for part in found.contributions if part.logit and part.value is not None]
    shown = [
        part
        for place, part in enumerate(moved[:MOST_REASONS])
        if place < FEWEST_REASONS or abs(part.logit) >= WORTH_A_WORD
    ]
    return [_contribution(part) for part in shown]


def _contribution(part: Contribution) -> Reason:
    text = FEATURES[part.feature].description
    value = "not measured" if part.value is None else words.number(part.value)
    typical = ""
    if part.typical is not None:
        failures, successes = (words.number(x) for x in part.typical)
        typical = f" (typically {successes} where composing gained, {failures} where it did not)"
    way = "up" if part.logit > 0 else "down"
    return Reason(
        "calibrated-feature",
        f"{text[0].upper()}{text[1:]}: {value}{typical}; this pushes the probability {way}.",
        part.value,
        None if part.typical is None else sum(part.typical) / 2,
        f"{part.feature}, {part.logit:+.2f} on the log-odds",
    )
