"""Fits the spread of measured gains; see `loraprobe.verdict.probability`.

A measured gain g of a case is taken as t(g) = centre + noise, t(x) = asinh(x / UNIT), centre =
intercept + baseline times the case's best score of base and single adapters. The noise is logistic
with scale `spread`, widened by the measured gain's own standard error. Coefficients maximise the
likelihood of all measured gains, decided or not, so one fit serves every margin.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from loraprobe.records.estimates import Z95
from loraprobe.verdict.probability import FORMAT, Coefficients
from loraprobe_lab.calibration.cases import AnsweredSet, Case, CaseError

Array = NDArray[np.float64]
FEWEST = 20  # cases for a fit
MARGINS = (0.0, 0.02, 0.05, 0.1, 0.2)  # at which shares and errors are reported
UNIT = 0.05


def fit(cases: Sequence[Case]) -> Coefficients:
    """The coefficients of greatest likelihood. Raises CaseError for too few cases."""
    if len(cases) < FEWEST:
        raise CaseError(f"A fit needs at least {FEWEST} cases; there are {len(cases)}: add worlds.")

    columns = columns_of(cases)

    def fitted(theta: Array) -> Coefficients:
        return Coefficients(UNIT, float(theta[0]), float(theta[1]), float(np.exp(theta[2])))

    def loss(theta: Array) -> float:
        return -float(log_density(fitted(theta), *columns).mean())

    return fitted(optimize.minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-6}).x)


def columns_of(cases: Sequence[Case]) -> tuple[Array, Array, Array]:
    """Measured gains, their standard errors, and the best scores without a composition: [cases]."""
    rows = [(c.gain, (c.ci95[1] - c.ci95[0]) / 2 / Z95, c.baseline) for c in cases]
    gain, error, baseline = np.array(rows).T
    return gain, error, baseline


def log_density(given: Coefficients, gain: Array, error: Array, baseline: Array) -> Array:
    """The log-density of each measured gain, in gains: [cases]."""
    slope = UNIT**2 + gain**2  # 1 / (dt / dg)^2
    # The variance of a logistic distribution is pi^2 / 3 times its scale squared.
    scale = np.sqrt(given.spread**2 + 3 / np.pi**2 * error**2 / slope)
    centre = given.intercept + given.baseline * baseline
    found: Array = stats.logistic.logpdf(np.arcsinh(gain / UNIT), centre, scale) - np.log(slope) / 2
    return found


def document_of(
    fitted: Coefficients,
    cases: Sequence[Case],
    made_by: str,
    accuracy: Mapping[str, Any],
    sets: Sequence[AnsweredSet] = (),
) -> dict[str, Any]:
    """The calibration file.

    cases: those it was fitted on. sets: adapter sets with the answers of every default system.
    """
    return {
        "format": FORMAT,
        "made_by": made_by,
        "coefficients": {name: round(value, 4) for name, value in asdict(fitted).items()},
        "measured": {"cases": len(cases), "bases": len({case.base for case in cases})},
        "gained": _gained([case.gain for case in cases]),
        "accuracy": dict(accuracy),
        "classes": _classes(cases, sets),
    }


def _classes(cases: Sequence[Case], sets: Sequence[AnsweredSet]) -> list[dict[str, Any]]:
    """What the best composition of each adapter set gained, by kind of base and of task.

    Where a kind has answered sets, they alone count, because cases lack the router per prompt.
    """
    found: dict[tuple[str, int, int, str], dict[tuple[str, str], tuple[str, float]]] = {}
    for one in sets:
        kind = (one.base_kind, *astuple(one.kind))
        found.setdefault(kind, {})[one.set_key] = one.base, one.best_gain
    answered = set(found)
    for case in cases:
        kind = (case.base_kind, case.tasks, case.hops, case.metric)
        if kind not in answered:
            best = found.setdefault(kind, {}).get(case.set_key, (case.base, -1.0))
            found[kind][case.set_key] = case.base, max(best[1], case.gain)
    return [
        {
            "base": base,
            "tasks": tasks,
            "hops": hops,
            "metric": metric,
            "sets": len(own),
            "bases": len({base for base, _ in own.values()}),
            "gained": _gained([gain for _, gain in own.values()]),
        }
        for (base, tasks, hops, metric), own in sorted(found.items())
    ]


def _gained(gains: Sequence[float]) -> list[list[float]]:
    """[margin, share of the gains above it] for the margins that are reported."""
    return [[m, round(sum(gain > m for gain in gains) / len(gains), 4)] for m in MARGINS]
