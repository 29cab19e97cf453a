"""The forecast of a verdict and its probability; neither changes the decision.

Both use only what is known before any composition is run, on the levels `base` and `evaluation`.
The calibration gives the probability that some composition gains more than the margin. The
verdict's probability is that of its own decision: this for `likely`, its complement for `unlikely`.
It is absent for `inconclusive`, for several tasks, of which the calibration says nothing about
keeping every skill, and where measured compositions came out on the other side of the forecast.
"""

from __future__ import annotations

import dataclasses

from loraprobe.defaults import FEWEST_ITEMS, LIKELY_FROM, MARGIN
from loraprobe.formatting import count
from loraprobe.records import Forecast, Reason, Verdict
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict import reasons
from loraprobe.verdict.calibration import Calibration
from loraprobe.verdict.evidence import BASELINES, Evidence

LEVELS = ("base", "pilot", "evaluation")
Z95 = 1.959964  # half-width of a 95 % interval in standard errors


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
        return verdict, [_outside(_why_no_forecast(evidence))]
    verdict = dataclasses.replace(verdict, forecast=forecast)
    reason = _forecast(forecast, evidence.margin)
    baseline = evidence.baseline
    if evidence.several:
        return verdict, [reason, _outside("it would be of a gain, not of keeping every skill")]
    if forecast.n < FEWEST_ITEMS:
        few = f"{count(forecast.n, 'question')}, and {FEWEST_ITEMS} are needed"
        return verdict, [reason, _outside(few)]
    if baseline is None:
        return verdict, [reason, _outside("base and single adapters were not scored on every task")]
    adapters = len(evidence.systems(("adapter",)))
    why = calibration.why_outside(forecast.gain, adapters, evidence.kind_of_task)
    if why:
        return verdict, [reason, _outside(why)]
    gains = calibration.probability(
        evidence.margin, forecast.gain, forecast_error(forecast), baseline, evidence.prior
    )
    prior = calibration.prior(evidence.margin) if evidence.prior is None else evidence.prior
    measured = _measured_on(gains, prior, evidence.margin, calibration)
    verdict = dataclasses.replace(
        verdict,
        forecast=dataclasses.replace(forecast, probability=gains),
        probability=_of_decision(verdict, gains),
        prior=prior,
    )
    return verdict, [reason, measured]


def _of_decision(verdict: Verdict, gains: float) -> float | None:
    """The probability of the decision itself; `gains` is that some composition gains."""
    found = {"likely": gains, "unlikely": 1 - gains}.get(verdict.decision)
    if found is not None and verdict.evidence == "evaluation" and found < 0.5:
        return None
    return found


def forecast_error(forecast: Forecast) -> float:
    """The standard error of a forecast gain, from its paired interval."""
    low, high = forecast.ci95
    return (high - low) / 2 / Z95


def _why_no_forecast(evidence: Evidence) -> str:
    if evidence.losses:
        return "its scores are losses, and forecasts are of answers that are right or wrong"
    if not evidence.systems(BASELINES):
        return "base and single adapters were not scored on a task"
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


def _measured_on(
    probability: float, prior: float, margin: float, calibration: Calibration
) -> Reason:
    found = calibration.accuracy
    text = (
        f"Before composing, the probability that some composition gains more than "
        f"{fmt.number(margin)} was {fmt.number(probability)} (prior {fmt.number(prior)}). On "
        f"{found.where}, such probabilities for a margin of {fmt.number(MARGIN)} had a Brier "
        f"score of {fmt.number(found.brier)} and an AUROC of {fmt.number(found.auroc)}"
    )
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
