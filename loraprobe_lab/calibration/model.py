"""Training cases -> a fitted calibration: terms, coefficients, calibrated range, threshold.

A regularised logistic regression on terms that forward selection chose. It exports the file that
`loraprobe.verdict` evaluates without scikit-learn, and exporting checks that both agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loraprobe.errors import LoraprobeError
from loraprobe.verdict.features import FEATURES
from loraprobe.verdict.terms import CONSTANT
from loraprobe_lab.calibration.cases import FAMILIES, Case, CaseError, decided
from loraprobe_lab.calibration.measures import likely_threshold
from loraprobe_lab.calibration.selection import Chosen, Training, logistic, select
from loraprobe_lab.calibration.support import Range, fit_range
from loraprobe_lab.calibration.terms import Array, Candidate, candidates
from loraprobe_lab.calibration.theory import SIGNS

AGREEMENT = 1e-9  # between scikit-learn and the exported file
FEWEST = 10  # decided cases of each class


@dataclass(frozen=True)
class Fitted:
    """A model fitted on training cases.

    `out_of_fold` [training cases] are probabilities of fits that had left out the case's group of
    bases; `threshold` is the probability from which a case is called `likely`, chosen on them.
    """

    chosen: Chosen
    intercept: float
    coefficients: Array
    prior: float
    range: Range
    threshold: float
    out_of_fold: Array
    cases: tuple[Case, ...]

    def logits(self, cases: Sequence[Case]) -> Array:
        """[cases]"""
        return self.intercept + _matrix(self.chosen, cases) @ self.coefficients

    def predict(self, cases: Sequence[Case]) -> Array:
        """The probability of each case, inside the calibrated range or not: [cases]."""
        return 1 / (1 + np.exp(-self.logits(cases)))

    def document(
        self, provenance: Mapping[str, Any], accuracy: Mapping[str, Any], margin: float
    ) -> dict[str, Any]:
        """The calibration file. Raises LoraprobeError if it does not say what the model says."""
        terms = zip(self.chosen.terms, self.coefficients, strict=True)
        present = {case.family for case in self.cases}
        document = {
            "format": 1,
            "provenance": dict(provenance),
            "prior": self.prior,
            "margin": margin,
            "families": [family for family in FAMILIES if family in present],
            "model": {
                "kind": "logistic",
                "intercept": self.intercept,
                "terms": [term.document(float(c), self.cases) for term, c in terms],
            },
            "support": self.range.document(),
            "likely_from": self.threshold,
            "accuracy": dict(accuracy),
        }
        agree(document, self.cases, self.logits(self.cases), self.range)
        return document

    @property
    def path(self) -> tuple[tuple[str, float], ...]:
        """The loss after each step of the selection."""
        return self.chosen.path


def agree(document: Mapping[str, Any], cases: Sequence[Case], logits: Array, near: Range) -> None:
    """Raises LoraprobeError if a calibration file does not say what the fitted model says."""
    from loraprobe.verdict.calibrated import calibration_of

    read = calibration_of(document)
    for case, logit, inside in zip(cases, logits, near.inside(cases), strict=True):
        said = read.predict(case.features, case.family)
        if said.logit is None or abs(said.logit - logit) > AGREEMENT * max(1, abs(logit)):
            raise LoraprobeError(
                f"The exported calibration gives {said.logit} for {case.trial} on {case.base} "
                f"where the fitted model gives {logit}: the export is wrong."
            )
        if said.supported != bool(inside):
            raise LoraprobeError(
                f"The exported calibration and the fitted model do not agree on whether "
                f"{case.trial} on {case.base} lies in the calibrated range."
            )


def enough(y: Array) -> None:
    """Raises CaseError where a class has too few cases for a fit."""
    if min((y == 1).sum(), (y == 0).sum()) < FEWEST:
        raise CaseError(
            f"A calibration needs at least {FEWEST} successes and as many failures; there are "
            f"{int((y == 1).sum())} and {int((y == 0).sum())}: add worlds."
        )


def fit(
    cases: Sequence[Case],
    pool: Sequence[Candidate] | None = None,
    *,
    signs: Mapping[str, int] = SIGNS,
    most_wrong: float = 0.05,
) -> Fitted:
    """Fits on decided cases of training bases; undecided ones are left out.

    pool: candidates for terms, None for all that the cases have but those of the group "task":
    how many adapters, tasks and hops there are tells scenarios apart and says nothing of a new
    one. Raises CaseError for too few cases.
    """
    own = decided(cases)
    training = Training.of(own)
    enough(training.y)
    chosen = select(own, candidates(own, _usable(own)) if pool is None else pool, signs)
    X = _matrix(chosen, own)
    prior = float(training.y.mean())
    if chosen.terms:
        model: Any = logistic(X, training.y, chosen.strength)
        intercept, coefficients = float(model.intercept_[0]), model.coef_[0]
    else:
        intercept, coefficients = float(np.log(prior / (1 - prior))), np.zeros(0)
    out_of_fold = training.out_of_fold(X[None], chosen.strength)[0]
    return Fitted(
        chosen, intercept, coefficients, prior,
        fit_range(own, _scales(chosen)),
        likely_threshold(training.y, out_of_fold, most_wrong),
        out_of_fold, tuple(own),
    )  # fmt: skip


def _usable(cases: Sequence[Case]) -> list[str]:
    names = {name for case in cases for name in case.features}
    return [name for name in sorted(names) if name in FEATURES and FEATURES[name].group != "task"]


def _scales(chosen: Chosen) -> dict[str, str]:
    """feature -> its scale in the first term that uses it."""
    found: dict[str, str] = {}
    for term in chosen.terms:
        if term.feature != CONSTANT:
            found.setdefault(term.feature, term.transform)
    return found


def _matrix(chosen: Chosen, cases: Sequence[Case]) -> Array:
    if not chosen.terms:
        return np.zeros((len(cases), 0))
    return np.column_stack([term.column(cases) for term in chosen.terms])
