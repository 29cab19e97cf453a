"""The forecast of a verdict and its probability; neither changes the decision.

Both use only what is known before any composition is run, on the levels `base` and `evaluation`.
"""

from __future__ import annotations

import dataclasses

from loraprobe.defaults import LIKELY_FROM, MARGIN
from loraprobe.records import Forecast, Reason, Verdict
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict import reasons
from loraprobe.verdict.calibration import Calibration
from loraprobe.verdict.evidence import BASELINES, Evidence

LEVELS = ("base", "evaluation")
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
    if forecast is None:
        return verdict, [_outside(_why_no_forecast(evidence))]
    verdict = dataclasses.replace(verdict, forecast=forecast)
    reason = _forecast(forecast, evidence.margin)
    baseline = evidence.baseline
    if baseline is None:
        return verdict, [reason, _outside("base and single adapters were not scored on every task")]
    adapters = len(evidence.systems(("adapter",)))
    why = calibration.why_outside(forecast.gain, adapters, evidence.kind_of_task)
    if why:
        return verdict, [reason, _outside(why)]
    probability = calibration.probability(
        evidence.margin, forecast.gain, forecast_error(forecast), baseline, evidence.prior
    )
    prior = calibration.prior(evidence.margin) if evidence.prior is None else evidence.prior
    verdict = dataclasses.replace(verdict, probability=probability, prior=prior)
    return verdict, [reason, _measured_on(probability, prior, evidence.margin, calibration)]


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
        f"If the adapters' effects on the next token simply added, {forecast.system}, "
        f"{fmt.PART[forecast.part]}, would differ from the best of base and single adapters "
        f"({reasons.against(forecast)}) by {fmt.gain(forecast.gain, *forecast.ci95)} on "
        f"{fmt.count(forecast.n, 'item')}; the margin is {fmt.number(margin)}.",
        forecast.gain,
        margin,
        "computed with one adapter in the model at a time, before any composition was run",
    )


def _outside(why: str) -> Reason:
    return Reason(
        "outside-calibration",
        f"No probability is given for this case: {why}.",
        source="a probability is given only for cases like those that were measured",
    )


def _measured_on(
    probability: float, prior: float, margin: float, calibration: Calibration
) -> Reason:
    found = calibration.accuracy
    text = (
        f"Probability {fmt.number(probability)} that some composition gains more than "
        f"{fmt.number(margin)} (prior {fmt.number(prior)}). On {found.where}, probabilities "
        f"for a margin of {fmt.number(MARGIN)} had a Brier score of {fmt.number(found.brier)} "
        f"and ranked successes above failures with an AUROC of {fmt.number(found.auroc)}"
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
