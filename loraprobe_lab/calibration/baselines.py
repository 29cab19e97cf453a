"""What the calibrated probability has to beat, each fitted on the same training cases.

`hand-weighted geometry` is a score of the kind that merge scanners print: the equal mean of the
overlap of written directions, the cosine of the updates (moved to [0, 1]), the balance of their
norms (the smaller over the larger) and the share of entries that agree in sign. Its weights are
fixed by hand here and fitted to nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from loraprobe.verdict.features import FEATURES
from loraprobe.verdict.terms import CONSTANT
from loraprobe_lab.calibration.cases import Case, decided
from loraprobe_lab.calibration.model import fit
from loraprobe_lab.calibration.terms import Array, candidates

Predictor = Callable[[Sequence[Case], Sequence[Case]], Array]  # train, test -> [test]


def scenario_alone(train: Sequence[Case], test: Sequence[Case]) -> Array:
    """The share of successes among training cases of the scenario, shrunk to that of all."""
    own = decided(train)
    share = float(np.mean([c.label or 0 for c in own]))

    def of(scenario: str) -> float:
        labels = [c.label or 0 for c in own if c.scenario == scenario]
        return (sum(labels) + share) / (len(labels) + 1)

    return np.array([of(case.scenario) for case in test])


def always_no(train: Sequence[Case], test: Sequence[Case]) -> Array:
    """Probability 0."""
    return np.zeros(len(test))


def geometry_by_hand(train: Sequence[Case], test: Sequence[Case]) -> Array:
    """The hand-weighted score, taken as a probability; 0.5 where nothing of it was measured."""
    return np.array([_geometric(case) for case in test])


def _geometric(case: Case) -> float:
    def take(name: str, scale: Callable[[float], float]) -> float | None:
        value = case.features.get(name)
        return None if value is None else scale(value)

    parts = [
        take("overlap_out", float),
        take("cosine_max", lambda x: (1 + x) / 2),
        take("norm_log_ratio", lambda x: math.exp(-abs(x))),
        take("sign_conflict", lambda x: 1 - x),
    ]
    known = [part for part in parts if part is not None]
    return sum(known) / len(known) if known else 0.5


def fitted_on(names: Sequence[str], by_family: bool) -> Predictor:
    """The same kind of model on these features alone, with the family of method or without."""

    def predict(train: Sequence[Case], test: Sequence[Case]) -> Array:
        pool = candidates(decided(train), names)
        if not by_family:
            pool = [candidate for candidate in pool if candidate.family is None]
        elif not names:
            pool = [candidate for candidate in pool if candidate.feature == CONSTANT]
        return fit(train, pool).predict(test)

    return predict


def predictors() -> Mapping[str, Predictor]:
    """Every baseline by its name in the report."""
    weights = [name for name, feature in FEATURES.items() if feature.group == "weights"]
    return {
        "always no": always_no,
        "scenario alone": scenario_alone,
        "family of method alone": fitted_on([], by_family=True),
        "number of hops alone": fitted_on(["hops"], by_family=False),
        "base score alone": fitted_on(["base_score"], by_family=False),
        "best single score alone": fitted_on(["best_single_score"], by_family=False),
        "weights alone": fitted_on(weights, by_family=False),
        "weights and family": fitted_on(weights, by_family=True),
        "hand-weighted geometry": geometry_by_hand,
    }
