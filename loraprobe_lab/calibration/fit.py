"""Fits the spread of measured gains; see `loraprobe.verdict.calibration`.

A measured gain g of a case is taken as t(g) = centre + noise, t(x) = asinh(x / UNIT), centre =
intercept + a coefficient times each column of a variant. The noise is logistic with scale `spread`,
widened by the measured gain's own standard error; a forecast among the columns is averaged over its
standard error with three points (Gauss and Hermite's rule). Coefficients maximise the likelihood of
all measured gains, decided or not, so one fit serves every margin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from loraprobe.sample_size import Z95
from loraprobe.verdict.calibration import FORMAT, Coefficients
from loraprobe_lab.calibration.answered import AnsweredSet
from loraprobe_lab.calibration.cases import Case, CaseError

Array = NDArray[np.float64]
FEWEST = 20  # cases for a fit
MARGINS = (0.0, 0.02, 0.05, 0.1, 0.2)  # at which shares and errors are reported
UNIT = 0.05
STEPS, WEIGHTS = np.array([-math.sqrt(3), 0.0, math.sqrt(3)]), np.array([1, 4, 1]) / 6
Variant = tuple[str, ...]  # the columns: "baseline", "forecast"
SHIPPED: Variant = ("baseline",)
WITH_FORECAST: Variant = ("baseline", "forecast")


@dataclass(frozen=True)
class Fitted:
    """A variant with its coefficients: the intercept, one for each column, and the spread."""

    variant: Variant
    coefficients: tuple[float, ...]
    spread: float

    def given(self, case: Case) -> Coefficients:
        """The coefficients for a case: its forecast, if it is a column, is in the intercept."""
        own = dict(zip(("intercept", *self.variant), self.coefficients, strict=True))
        shift = own.get("forecast", 0.0) * math.asinh((case.forecast or 0.0) / UNIT)
        return Coefficients(UNIT, own["intercept"] + shift, own["baseline"], self.spread)

    def log_density(self, gain: Array, error: Array, columns: Array) -> Array:
        """The log-density of each measured gain, in gains: [cases].

        gain, error: [cases]. columns: [points of the quadrature, cases, columns].
        """
        slope = UNIT**2 + gain**2  # 1 / (dt / dg)^2
        # The variance of a logistic distribution is pi^2 / 3 times its scale squared.
        scale = np.sqrt(self.spread**2 + 3 / np.pi**2 * error**2 / slope)
        intercept, *others = self.coefficients
        z = (np.arcsinh(gain / UNIT) - intercept - columns @ np.array(others)) / scale
        density = WEIGHTS @ (special.expit(z) * special.expit(-z) / scale)
        found: Array = np.log(density) - np.log(slope) / 2
        return found

    def document(
        self,
        cases: Sequence[Case],
        made_by: str,
        accuracy: Mapping[str, Any],
        sets: Sequence[AnsweredSet] = (),
    ) -> dict[str, Any]:
        """The calibration file of the shipped variant.

        cases: those it was fitted on. sets: adapter sets with the answers of every default system.
        """
        names = ("intercept", *self.variant)
        coefficients = dict(zip(names, self.coefficients, strict=True)) | {"spread": self.spread}
        return {
            "format": FORMAT,
            "made_by": made_by,
            "coefficients": {
                "unit": UNIT,
                **{name: round(value, 4) for name, value in coefficients.items()},
            },
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


def columns_of(cases: Sequence[Case], variant: Variant) -> tuple[Array, Array, Array]:
    """Measured gains, their standard errors, and the columns; see `Fitted.log_density`."""
    found = [np.array([[case.baseline for case in cases]] * len(STEPS))]
    if "forecast" in variant:
        known = [(case.forecast or 0.0, case.error or 0.0) for case in cases]
        found.append(np.array([np.arcsinh([(f + s * e) / UNIT for f, e in known]) for s in STEPS]))
    width = np.array([case.ci95[1] - case.ci95[0] for case in cases])
    columns = np.stack(found, axis=-1)
    return np.array([case.gain for case in cases]), width / 2 / Z95, columns


def fit(cases: Sequence[Case], variant: Variant = SHIPPED) -> Fitted:
    """The coefficients of greatest likelihood. Raises CaseError for too few cases."""
    if len(cases) < FEWEST:
        raise CaseError(f"A fit needs at least {FEWEST} cases; there are {len(cases)}: add worlds.")

    data = columns_of(cases, variant)

    def fitted(theta: Array) -> Fitted:
        return Fitted(variant, tuple(map(float, theta[:-1])), float(np.exp(theta[-1])))

    def loss(theta: Array) -> float:
        return -float(fitted(theta).log_density(*data).mean())

    start = np.zeros(2 + len(variant))
    return fitted(optimize.minimize(loss, start, method="BFGS", options={"gtol": 1e-6}).x)
