"""The forecast of a verdict and its probability; neither changes the decision.

Both use only what is known before any composition is run, on the levels `base` and `evaluation`.
The calibration gives the probability that some composition gains more than the margin. The
verdict's probability is that of its own decision: this for `likely`, its complement for `unlikely`.
It is absent for `inconclusive`, for several tasks, of which the calibration says nothing about
keeping every skill, where measured compositions came out on the other side of the forecast, and for
kinds of bases on which nobody measured how often such probabilities are wrong.
"""

from __future__ import annotations

import dataclasses

from loraprobe.defaults import FEWEST_ITEMS, LIKELY_FROM, MARGIN
from loraprobe.formatting import count
from loraprobe.records import BASELINES, Forecast, Reason, Verdict
from loraprobe.sample_size import Z95
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict import reasons
from loraprobe.verdict.calibration import Accuracy, Calibration, kind_of_base
from loraprobe.verdict.evidence import Evidence

LEVELS = ("base", "pilot", "evaluation")


def with_probability(
    verdict: Verdict, evidence: Evidence, calibration: Calibration
) -> tuple[Verdict, list[Reason]]:
    """The verdict with forecast, probability and prior, and their reasons.

    The forecast is the largest among the compositions asked for, so the probability that some
    composition gains is at least the one given.
    """
    if verdict.evidence not in LEVELS:
        return verdict, []
    forecast = max(evidence.forecasts, key=lambda one: one.gain, default=None)
    if forecast is None and verdict.evidence != "evaluation":
        return verdict, []  # a first round outranks it, or compositions cannot be asked
    if forecast is None:
        return verdict, [_outside(_why_no_forecast(evidence, calibration))]
    why = _why_outside(forecast, evidence, calibration)
    forecast = capped(forecast, None if evidence.losses else evidence.baseline)
    verdict = dataclasses.replace(verdict, forecast=forecast)
    reason = _forecast(forecast, evidence.margin)
    if evidence.several:
        skills = _outside("it would be of a gain, not of keeping every skill")
        return verdict, [reason, *_retentions(forecast, evidence.retention), skills]
    if why:
        return verdict, [reason, _outside(why)]
    baseline, base = evidence.baseline or 0.0, evidence.base
    assert base is not None
    gains = calibration.probability(
        evidence.margin, forecast.gain, forecast_error(forecast), baseline, evidence.prior
    )
    prior = calibration.prior(evidence.margin) if evidence.prior is None else evidence.prior
    accuracy = calibration.accuracy[kind_of_base(base)]
    measured = _measured_on(gains, prior, evidence.margin, accuracy)
    verdict = dataclasses.replace(
        verdict,
        forecast=dataclasses.replace(forecast, probability=gains),
        probability=_of_decision(verdict, gains),
        prior=prior,
    )
    return verdict, [reason, measured]


def capped(forecast: Forecast, baseline: float | None) -> Forecast:
    """The forecast with a gain and an interval of at most 1 - baseline: no score exceeds 1.

    The baseline is known from more items than the forecast, on which it may look smaller.
    """
    if baseline is None:
        return forecast
    room = 1.0 - baseline
    low, high = (min(end, room) for end in forecast.ci95)
    return dataclasses.replace(forecast, gain=min(forecast.gain, room), ci95=(low, high))


def _why_outside(forecast: Forecast, evidence: Evidence, calibration: Calibration) -> str:
    """Why a forecast for one task has no probability; empty if it has one."""
    if forecast.n < FEWEST_ITEMS:
        return f"{count(forecast.n, 'question')}, and {FEWEST_ITEMS} are needed"
    if evidence.baseline is None:
        return "base and single adapters were not scored on every task"
    adapters, figures = len(evidence.systems(("adapter",))), evidence.weight_figures
    return calibration.why_unmeasured(evidence.base) or calibration.why_outside(
        forecast.gain, adapters, evidence.kind_of_task, figures
    )


def _retentions(forecast: Forecast, threshold: float) -> list[Reason]:
    """The forecast of how much of each task's specialist is kept: one reason a task."""
    return [
        Reason(
            "forecast-retention",
            f"If the adapters' effects simply added, {forecast.system} would keep "
            f"{fmt.number(row.value)} {fmt.interval(*row.ci95)} of the gain of {row.task}'s "
            f"specialist; {fmt.number(threshold)} is asked.",
            row.value,
            threshold,
            "computed with one adapter in the model at a time, before any composition was run",
        )
        for row in forecast.retentions
    ]


def _of_decision(verdict: Verdict, gains: float) -> float | None:
    """The probability of the decision itself; `gains` is that some composition gains."""
    found = {"likely": gains, "unlikely": 1 - gains}.get(verdict.decision)
    if found is not None and verdict.evidence in ("pilot", "evaluation") and found < 0.5:
        return None
    return found


def forecast_error(forecast: Forecast) -> float:
    """The standard error of a forecast gain, from its paired interval."""
    low, high = forecast.ci95
    return (high - low) / 2 / Z95


def _why_no_forecast(evidence: Evidence, calibration: Calibration) -> str:
    if evidence.losses:
        return "its scores are losses, and forecasts are of answers that are right or wrong"
    if not evidence.systems(BASELINES):
        return "base and single adapters were not scored on a task"
    if evidence.prior is None and (why := calibration.why_unmeasured(evidence.base)):
        return why
    return "none of the compositions asked for can be forecast"


def _forecast(forecast: Forecast, margin: float) -> Reason:
    return Reason(
        "forecast",
        f"If the adapters' effects simply added, {forecast.system}, {fmt.PART[forecast.part]}, "
        f"would gain {fmt.gain(forecast.gain, *forecast.ci95)} against "
        f"{reasons.against(forecast)} on {count(forecast.n, 'item')}.",
        forecast.gain,
        margin,
        "computed with one adapter in the model at a time, before any composition was run",
    )


def _outside(why: str) -> Reason:
    return Reason(
        "outside-calibration",
        f"No probability is given: {why}.",
        source="a probability is given only for cases like those that were measured",
    )


def _measured_on(probability: float, prior: float, margin: float, found: Accuracy) -> Reason:
    text = (
        f"Before composing, the probability that some composition gains more than "
        f"{fmt.number(margin)} was {fmt.number(probability)} (prior {fmt.number(prior)}). On "
        f"{found.where}, such probabilities for a margin of {fmt.number(MARGIN)} had a Brier "
        f"score of {fmt.number(found.brier)}"
    )
    if found.auroc is not None:
        text += f" and an AUROC of {fmt.number(found.auroc)}"
    if found.wrong is not None:
        text += (
            f"; of {found.likely} compositions given {fmt.number(LIKELY_FROM)} or more, "
            f"{found.wrong:.0%} did not gain"
        )
    return Reason(
        "probability-measured-on",
        f"{text}.",
        probability,
        LIKELY_FROM,
        f"{found.cases} compositions whose outcome was measured (--prior)",
    )
