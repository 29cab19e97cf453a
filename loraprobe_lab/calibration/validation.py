"""Measures the probabilities on left-out bases, scenarios and architectures.

Brier score and AUROC are of decided cases, whose interval does not contain the margin. The AUROC is
computed *within* each scenario and averaged over the scenarios that have both outcomes: a pooled
AUROC would also reward the distinction of scenarios, which needs no tool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from loraprobe.defaults import LIKELY_FROM, MARGIN
from loraprobe_lab.calibration.cases import Case, CaseError
from loraprobe_lab.calibration.fit import MARGINS, SHIPPED, VARIANTS, Array, Variant, fit
from loraprobe_lab.calibration.kinds import Indices, within_kinds

LEFT_OUT: Mapping[str, Callable[[Case], str]] = {
    "bases": lambda case: case.base,
    "scenarios": lambda case: case.scenario,
    "architectures": lambda case: case.architecture,
}
SHARES = (0.5, 0.9)  # of predictive intervals whose coverage is measured


@dataclass(frozen=True)
class LeftOut:
    """Predictions for every case by a fit without its group: [cases] each.

    probability: margin -> P(gain > margin); above: P(gain > the measured gain); density: the
    log-density of the measured gain.
    """

    cases: tuple[Case, ...]
    probability: Mapping[float, Array]
    above: Array
    density: Array

    def figures(self, margin: float = MARGIN, cases: Sequence[int] | None = None) -> Figures:
        """Of the decided cases, or of some of them (indices, which may repeat)."""
        chosen = range(len(self.cases)) if cases is None else cases
        return figures_of(
            [self.cases[i] for i in chosen], self.probability[margin][list(chosen)], margin
        )

    def covered(self, share: float) -> float:
        """Share of measured gains within the central predictive interval of this share.

        The interval does not include the measured gain's own error, so a little less is expected.
        """
        return float(np.mean(np.abs(self.above - 0.5) < share / 2))


@dataclass(frozen=True)
class Figures:
    """Measures of probabilities; NaN if undefined.

    likely: cases with a probability of at least LIKELY_FROM; wrong: the share of failures in them.
    """

    decided: int
    auroc: float
    brier: float
    likely: int
    wrong: float


def figures_of(cases: Sequence[Case], p: Array, margin: float = MARGIN) -> Figures:
    """The figures of probabilities [cases] that gains exceed the margin."""
    labels = [case.label(margin) for case in cases]
    kept = [i for i, label in enumerate(labels) if label is not None]
    y = np.array([labels[i] for i in kept], dtype=float)
    p = p[kept]
    called = p >= LIKELY_FROM
    return Figures(
        decided=len(y),
        auroc=within_kinds([cases[i] for i in kept], p, y == 1),
        brier=float(np.mean((p - y) ** 2)) if len(y) else float("nan"),
        likely=int(called.sum()),
        wrong=float(1 - y[called].mean()) if called.any() else float("nan"),
    )


def left_out(cases: Sequence[Case], key: Callable[[Case], str], variant: Variant) -> LeftOut:
    """Predictions for each group by a fit on the others. Raises CaseError for a single group."""
    probability = {margin: np.zeros(len(cases)) for margin in MARGINS}
    density, above = np.zeros(len(cases)), np.zeros(len(cases))
    for rest, own in _splits(cases, key):
        test = [cases[i] for i in own]
        fitted = fit([cases[i] for i in rest], variant)
        for margin, found in probability.items():
            found[own] = fitted.probability(test, margin)
        density[own] = fitted.log_density(test)
        above[own] = [float(fitted.probability([case], case.gain)[0]) for case in test]
    return LeftOut(tuple(cases), probability, above, density)


def plain_logistic(cases: Sequence[Case], key: Callable[[Case], str]) -> Figures:
    """The baseline: a logistic regression of success at the default margin on the forecast.

    It is fitted on decided cases, for one margin, and has one coefficient and an intercept.
    """
    decided = [case for case in cases if case.label(MARGIN) is not None]
    x = np.array([[case.forecast] for case in decided])
    y = np.array([case.label(MARGIN) for case in decided])
    p = np.zeros(len(decided))
    for rest, own in _splits(decided, key):
        model = make_pipeline(StandardScaler(), LogisticRegression()).fit(x[rest], y[rest])
        p[own] = model.predict_proba(x[own])[:, 1]
    return figures_of(decided, p)


def interval(
    found: LeftOut, figure: Callable[[Figures], float], draws: int, seed: int
) -> tuple[float, float]:
    """The 95 % percentile interval of a figure, by bootstrap over bases."""
    rng = np.random.default_rng(seed)
    bases = sorted({case.base for case in found.cases})
    members = [[i for i, c in enumerate(found.cases) if c.base == base] for base in bases]
    values = []
    for _ in range(draws):
        drawn = rng.integers(len(bases), size=len(bases))
        values.append(figure(found.figures(cases=[i for k in drawn for i in members[k]])))
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def _splits(cases: Sequence[Case], key: Callable[[Case], str]) -> Iterator[tuple[Indices, Indices]]:
    """(indices to fit on, indices to predict), a group left out each time."""
    groups = [key(case) for case in cases]
    if len(set(groups)) < 2:
        raise CaseError(f"All cases are of {groups[0] if groups else 'nothing'}: add worlds.")
    yield from LeaveOneGroupOut().split(groups, groups=groups)


# Shown to users, because their models differ from those on which the accuracy was measured.
WHERE = {
    "small": "scenarios left out of the fit, on small bases that the lab trained",
    "natural": "scenarios left out of the fit, on published models",
}
FEWEST_DECIDED = 40  # cases on one kind of base; half a 95 % interval of a share is then 0.15


@dataclass(frozen=True)
class Results:
    """The contents of the page and the figure.

    variants: variant -> what is left out -> predictions; plain: the figures of the baseline.
    """

    cases: tuple[Case, ...]
    variants: Mapping[Variant, Mapping[str, LeftOut]]
    plain: Mapping[str, Figures]
    intervals: Mapping[str, tuple[tuple[float, float], tuple[float, float]]]

    @property
    def shipped(self) -> Mapping[str, LeftOut]:
        """The predictions of the variant that ships."""
        return self.variants[SHIPPED]

    def accuracy(self) -> dict[str, Any]:
        """Kind of base -> the accuracy as recorded in the file, of kinds with enough cases."""
        return {kind: row for kind in WHERE if (row := self._accuracy_on(kind)) is not None}

    def _accuracy_on(self, kind: str) -> dict[str, Any] | None:
        own = [i for i, case in enumerate(self.cases) if case.base_kind == kind]
        architectures = sorted({self.cases[i].base_architecture for i in own} - {""})
        found = self.shipped["scenarios"].figures(cases=own)
        if found.decided < FEWEST_DECIDED or not architectures:
            return None
        return {
            "where": WHERE[kind],
            "architectures": architectures,
            "cases": found.decided,
            "auroc": None if np.isnan(found.auroc) else round(found.auroc, 3),
            "brier": round(found.brier, 3),
            "likely": found.likely,
            "wrong": round(found.wrong, 3) if found.likely else None,
        }


def measure(cases: Sequence[Case], draws: int, seed: int) -> Results:
    """Leaves out bases, scenarios and architectures in turn, for every variant."""
    found = {v: {what: left_out(cases, key, v) for what, key in LEFT_OUT.items()} for v in VARIANTS}
    intervals = {
        what: (
            interval(own, lambda figures: figures.auroc, draws, seed),
            interval(own, lambda figures: figures.brier, draws, seed),
        )
        for what, own in found[SHIPPED].items()
    }
    plain = {what: plain_logistic(cases, key) for what, key in LEFT_OUT.items()}
    return Results(tuple(cases), found, plain, intervals)
