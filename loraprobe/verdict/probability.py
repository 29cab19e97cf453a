"""The forecast of a verdict and its probability; neither changes the decision.

The calibration gives the probability that the composition of the verdict gains more than the
margin, from its gain on the items that were asked and the spread of measured gains. For several
tasks it is multiplied by the probability that every specialist's skill is kept, see `keeps`.
Controls have no part in it: they can only revoke a `likely`.

The verdict's probability is that of its own decision: this for `likely`, its complement for
`unlikely`. It is absent for `inconclusive`, where a decision against a gain rests on more than the
gain, and for kinds of bases and tasks on which nobody measured how often such probabilities are
wrong. A forecast stands alone as a number.
"""

from __future__ import annotations

import dataclasses
from statistics import NormalDist
from typing import Any

from loraprobe.defaults import ALPHA, FEWEST_ITEMS, LIKELY_FROM, MARGIN
from loraprobe.formatting import count
from loraprobe.records import Forecast, Gain, Reason, Verdict
from loraprobe.sample_size import Z95
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict import reasons
from loraprobe.verdict.calibration import Accuracy, Calibration, kind_of_base
from loraprobe.verdict.codes import reason_of
from loraprobe.verdict.evidence import Evidence

NORMAL = NormalDist()


def with_forecast(verdict: Verdict, evidence: Evidence) -> Verdict:
    """The verdict with the largest forecast among the compositions asked for, and its reasons."""
    forecast = max(evidence.forecasts, key=lambda one: one.gain, default=None)
    if forecast is None or verdict.evidence not in ("base", "pilot", "evaluation"):
        return verdict
    if not evidence.losses and evidence.baseline is not None:
        # No score exceeds 1. The baseline is known from more items than the forecast.
        room = 1.0 - evidence.baseline
        low, high = (min(end, room) for end in forecast.ci95)
        forecast = dataclasses.replace(forecast, gain=min(forecast.gain, room), ci95=(low, high))
    told = [
        reason_of(
            "forecast",
            forecast.gain,
            evidence.margin,
            forecast=forecast,
            form=fmt.PART[forecast.part],
            gain=fmt.gain(forecast.gain, *forecast.ci95),
            against=reasons.against(forecast),
            items=count(forecast.n, "item"),
        )
    ]
    asked = evidence.retention
    for row in forecast.retentions if evidence.several else ():
        told.append(reason_of("forecast-retention", row.value, asked, forecast=forecast, row=row))
    return _with(verdict, *told, forecast=forecast)


def with_probability(verdict: Verdict, evidence: Evidence, calibration: Calibration) -> Verdict:
    """The verdict with probability and prior, and the reason that tells their errors."""
    gain = gain_of(verdict, evidence)
    if verdict.gain is None or gain is None or verdict.evidence not in ("pilot", "evaluation"):
        return verdict
    if why := _why_none(gain, evidence, calibration):
        return _with(verdict, reason_of("outside-calibration", why=why))
    assert evidence.base is not None
    found = calibration.probability(
        evidence.margin, evidence.baseline or 0.0, gain.difference, error_of(gain), evidence.prior
    )
    if evidence.several:
        found *= keeps(gain, evidence)
    prior = calibration.prior(evidence.margin) if evidence.prior is None else evidence.prior
    accuracy = calibration.errors(evidence.several)[kind_of_base(evidence.base)]
    of_decision = {"likely": found, "unlikely": 1 - found}.get(verdict.decision, 0.0)
    return _with(
        verdict,
        _measured_on(gain, found, prior, evidence, accuracy),
        gain=dataclasses.replace(verdict.gain, probability=found),
        probability=of_decision if of_decision >= 0.5 else None,
        prior=prior,
    )


def _with(verdict: Verdict, *told: Reason, **changes: Any) -> Verdict:
    """The verdict with further reasons and other changes."""
    return dataclasses.replace(verdict, reasons=(*verdict.reasons, *told), **changes)


def gain_of(verdict: Verdict, evidence: Evidence) -> Gain | None:
    """The gain that the verdict is about, with its interval for one comparison."""
    own = verdict.gain
    rows = [g for g in evidence.gains if own and (g.system, g.part) == (own.system, own.form)]
    return next((row for row in rows if row.task is None or not evidence.several), None)


def keeps(gain: Gain, evidence: Evidence) -> float:
    """P(every specialist's skill is kept) by the composition of a gain.

    Tasks have items of their own, so their probabilities are multiplied. Each takes the end of the
    retention's interval on the side of the threshold for a normal deviate; the interval's own end
    at the threshold is then met exactly. 0 where a retention is not known.
    """
    rounds, kept = evidence.rounds, 1.0
    level = 1 - ALPHA if rounds is None else rounds.level
    for row in evidence.scores(gain.system, gain.part):
        if row.retention is None or row.retention_ci95 is None:
            return 0.0
        low, high = row.retention_ci95
        above = row.retention - evidence.retention
        half = row.retention - low if above > 0 else high - row.retention
        deviate = NORMAL.inv_cdf((1 + level) / 2) * above / max(half, 1e-9)
        kept *= NORMAL.cdf(deviate)
    return kept


def _why_none(gain: Gain, evidence: Evidence, calibration: Calibration) -> str:
    """Why there is no probability; empty if there is one."""
    if evidence.losses:
        return "its scores are losses, and gains were measured of answers that are right or wrong"
    for row in evidence.scores(gain.system, gain.part) if evidence.several else ():
        if row.retention is None:
            return f"no single adapter is shown to be better at {row.task} than the base"
    asked = gain.clusters or gain.n
    if asked < FEWEST_ITEMS:
        return f"{count(asked, 'question')}, and {FEWEST_ITEMS} are needed"
    return calibration.why_unmeasured(evidence.base, evidence.several)


def error_of(row: Forecast | Gain) -> float:
    """The standard error of a gain, from its paired interval."""
    low, high = row.ci95
    return (high - low) / 2 / Z95


def _measured_on(
    gain: Gain, probability: float, prior: float, evidence: Evidence, found: Accuracy
) -> Reason:
    errors = ""
    if found.auroc is not None:
        errors = f" and an AUROC of {fmt.number(found.auroc)}"
    if found.wrong is not None:
        errors += (
            f"; of {found.likely} adapter sets given {fmt.number(LIKELY_FROM)} or more, "
            f"{found.wrong:.0%} did not gain"
        )
    kept = f" and keeps {fmt.number(evidence.retention)} of every specialist's gain"
    return reason_of(
        "probability-measured-on",
        probability,
        LIKELY_FROM,
        source=f"{count(found.sets, 'adapter set')} whose outcome was measured (--prior)",
        gain=gain,
        margin=evidence.margin,
        keeping=kept if evidence.several else "",
        probability=fmt.probability(probability),
        items=count(gain.n, "item"),
        prior=prior,
        measured=found,
        each=" of each task" if evidence.several else "",
        MARGIN=MARGIN,
        errors=errors,
    )
