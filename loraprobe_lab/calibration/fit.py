"""Fits the spread of measured gains around forecasts; see `loraprobe.verdict.calibration`.

A measured gain g of a case with forecast f is taken as t(g) = centre + noise, t(x) =
asinh(x / unit), centre = intercept + forecast * t(f) + the columns of a variant. The noise is
logistic with scale `spread`, widened by the measured gain's own standard error, and f is averaged
over its standard error with the same three points as in a verdict. Coefficients maximise the
likelihood of all measured gains, decided or not, so one fit serves every margin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from loraprobe.sample_size import Z95
from loraprobe.verdict.calibration import FORMAT, QUADRATURE
from loraprobe_lab.calibration.cases import Case, CaseError

Array = NDArray[np.float64]
FEWEST = 20  # cases for a fit of five coefficients
MARGINS = (0.0, 0.02, 0.05, 0.1, 0.2)  # at which shares and errors are reported
COLUMNS = {
    "baseline": lambda case: case.baseline,
    "several tasks": lambda case: float(case.tasks > 1),
    "router": lambda case: float(case.method == "arrow"),
    "step by step": lambda case: float(case.part == "steps"),
    "adapters": lambda case: float(case.adapters),
}


@dataclass(frozen=True)
class Variant:
    """The columns in the centre in addition to the forecast, and the unit of t."""

    columns: tuple[str, ...] = ()
    unit: float = 0.05

    def __str__(self) -> str:
        added = " + ".join(("forecast", *self.columns))
        return added if self.unit == Variant.unit else f"{added}, unit {self.unit:g}"


SHIPPED = Variant(("baseline",))
VARIANTS = (
    Variant(),
    SHIPPED,
    Variant(("several tasks",)),
    Variant(("router",)),
    Variant(("step by step",)),
    Variant(("adapters",)),
    Variant(("baseline", "several tasks")),
    Variant(("baseline", "router")),
    Variant(("baseline", "step by step")),
    Variant(("baseline", "adapters")),
    Variant(("baseline",), 0.02),
    Variant(("baseline",), 0.1),
)


@dataclass(frozen=True)
class _Arrays:
    """Cases as arrays: [cases] each, and the columns of a variant [cases, k]."""

    forecast: Array
    error: Array
    gain: Array
    gain_error: Array
    columns: Array

    @classmethod
    def of(cls, cases: Sequence[Case], variant: Variant) -> _Arrays:
        width = np.array([case.ci95[1] - case.ci95[0] for case in cases])
        columns = [[COLUMNS[name](case) for name in variant.columns] for case in cases]
        return cls(
            forecast=np.array([case.forecast for case in cases]),
            error=np.array([case.error for case in cases]),
            gain=np.array([case.gain for case in cases]),
            gain_error=width / 2 / Z95,
            columns=np.array(columns, dtype=np.float64).reshape(len(cases), len(variant.columns)),
        )


@dataclass(frozen=True)
class Fitted:
    """A variant with its coefficients: intercept, slope of t(forecast), the columns', spread."""

    variant: Variant
    coefficients: tuple[float, ...]
    spread: float

    def probability(self, cases: Sequence[Case], margin: float) -> Array:
        """P(gain > margin) of each case: [cases]."""
        data, aim = _Arrays.of(cases, self.variant), math.asinh(margin / self.variant.unit)
        found = np.zeros(len(cases))
        for step, weight in QUADRATURE:
            found += weight * special.expit((self._centre(data, step) - aim) / self.spread)
        return found

    def log_density(self, cases: Sequence[Case]) -> Array:
        """The log-density of each case's measured gain, in gains: [cases]."""
        return self._log_density(_Arrays.of(cases, self.variant))

    def _log_density(self, data: _Arrays) -> Array:
        slope = self.variant.unit**2 + data.gain**2  # 1 / (dt / dg)^2
        # The variance of a logistic distribution is pi^2 / 3 times its scale squared.
        scale = np.sqrt(self.spread**2 + 3 / np.pi**2 * data.gain_error**2 / slope)
        density = np.zeros(len(data.gain))
        for step, weight in QUADRATURE:
            z = (np.arcsinh(data.gain / self.variant.unit) - self._centre(data, step)) / scale
            density += weight * special.expit(z) * special.expit(-z) / scale
        found: Array = np.log(density) - np.log(slope) / 2
        return found

    def _centre(self, data: _Arrays, step: float) -> Array:
        intercept, steepness, *others = self.coefficients
        scaled = np.arcsinh((data.forecast + step * data.error) / self.variant.unit)
        centre: Array = intercept + steepness * scaled + data.columns @ np.array(others)
        return centre

    def document(
        self, cases: Sequence[Case], made_by: str, accuracy: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The calibration file of the shipped variant; cases: those it was fitted on."""
        names = ("intercept", "forecast", *self.variant.columns)
        kinds = sorted({(case.tasks, case.hops, case.metric) for case in cases})
        forecasts = [case.forecast for case in cases]
        coefficients = dict(zip(names, self.coefficients, strict=True)) | {"spread": self.spread}
        return {
            "format": FORMAT,
            "made_by": made_by,
            "coefficients": {
                "unit": self.variant.unit,
                **{name: round(value, 4) for name, value in coefficients.items()},
            },
            "measured": {
                "cases": len(cases),
                "bases": len({case.base for case in cases}),
                "forecast": [round(min(forecasts), 4), round(max(forecasts), 4)],
                "adapters": sorted({case.adapters for case in cases}),
                "kinds": [{"tasks": t, "hops": h, "metric": metric} for t, h, metric in kinds],
                "figures": _ranges(cases),
            },
            "gained": _gained([case.gain for case in cases]),
            "accuracy": dict(accuracy),
            "classes": _classes(cases),
        }


def _ranges(cases: Sequence[Case]) -> dict[str, list[float]]:
    """[lowest, highest] of each figure of the weights that all cases have."""
    names = set.intersection(*(set(case.figures) for case in cases))
    columns = {name: [case.figures[name] for case in cases] for name in sorted(names)}
    return {name: [float(f"{end(c):.4g}") for end in (min, max)] for name, c in columns.items()}


def _classes(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """What the best composition of each adapter set gained, by kind of base and of task."""
    sets: dict[tuple[str, int, int, str], dict[tuple[str, str], Case]] = {}
    for case in cases:
        found = sets.setdefault((case.base_kind, case.tasks, case.hops, case.metric), {})
        best = found.get(case.set_key)
        if best is None or case.gain > best.gain:
            found[case.set_key] = case
    return [
        {
            "base": base,
            "tasks": tasks,
            "hops": hops,
            "metric": metric,
            "sets": len(found),
            "bases": len({case.base for case in found.values()}),
            "gained": _gained([case.gain for case in found.values()]),
        }
        for (base, tasks, hops, metric), found in sorted(sets.items())
    ]


def _gained(gains: Sequence[float]) -> list[list[float]]:
    """[margin, share of the gains above it] for the margins that are reported."""
    return [[m, round(sum(gain > m for gain in gains) / len(gains), 4)] for m in MARGINS]


def fit(cases: Sequence[Case], variant: Variant = SHIPPED) -> Fitted:
    """The coefficients of greatest likelihood. Raises CaseError for too few cases."""
    if len(cases) < FEWEST:
        raise CaseError(f"A fit needs at least {FEWEST} cases; there are {len(cases)}: add worlds.")
    start = np.zeros(3 + len(variant.columns))
    start[1] = 1.0
    data = _Arrays.of(cases, variant)

    def fitted(theta: Array) -> Fitted:
        return Fitted(variant, tuple(map(float, theta[:-1])), float(np.exp(theta[-1])))

    def loss(theta: Array) -> float:
        return -float(fitted(theta)._log_density(data).mean())

    found = optimize.minimize(loss, start, method="BFGS", options={"gtol": 1e-6})
    return fitted(found.x)
