"""Which terms the model gets: forward selection by the loss on bases left out of the fit.

The loss is the mean log loss over groups of bases: every group is predicted by a fit on the others,
so a feature that only tells bases apart gains nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loraprobe_lab.calibration.cases import Case
from loraprobe_lab.calibration.newton import fit_many, probabilities
from loraprobe_lab.calibration.optional import need
from loraprobe_lab.calibration.terms import Array, Candidate, Mask, Term, fit_term

GROUPS = 5
SHORTLIST = 30  # candidates that are tried beside others, the best alone
MOST_TERMS = 8
LEAST_GAIN = 0.01  # of the loss, for one more term
STRENGTHS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # C of the logistic regression


@dataclass(frozen=True)
class Chosen:
    """Selected terms, the strength C of the fit, and the loss after each step, for the report."""

    terms: tuple[Term, ...]
    strength: float
    path: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Training:
    """Training cases as arrays: labels [cases], and the group of bases of each [cases]."""

    cases: Sequence[Case]
    y: Array
    group: NDArray[np.int64]

    @classmethod
    def of(cls, cases: Sequence[Case]) -> Training:
        bases = sorted({case.base for case in cases})
        number = {base: i % GROUPS for i, base in enumerate(bases)}
        return cls(
            cases,
            np.array([float(case.label or 0) for case in cases]),
            np.array([number[case.base] for case in cases]),
        )

    def left_out(self) -> list[tuple[Mask, Mask]]:
        """(fit on, predict) for every group; groups whose fit would see one class are left out."""
        masks = [(self.group != k, self.group == k) for k in np.unique(self.group)]
        return [(fit, test) for fit, test in masks if len(np.unique(self.y[fit])) == 2]

    def out_of_fold(self, X: Array, strength: float) -> Array:
        """Probabilities [m, cases] of designs X [m, cases, d], by fits without the case's group."""
        p = np.full(X.shape[:2], float(self.y.mean()))
        for fit, test in self.left_out():
            W = fit_many(X[:, fit], self.y[fit], strength)
            p[:, test] = probabilities(X[:, test], W)
        return p

    def losses(self, X: Array, strength: float = 1.0) -> Array:
        """Mean log loss of `out_of_fold` of each design: [m]."""
        return np.array([log_loss(self.y, p) for p in self.out_of_fold(X, strength)])


def logistic(X: Array, y: Array, strength: float) -> Any:
    """A fitted scikit-learn LogisticRegression with an l2 penalty of 1 / (2 C)."""
    linear = need("sklearn.linear_model")
    model = linear.LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-8, max_iter=200)
    return model.fit(X, y)


def log_loss(y: Array, p: Array) -> float:
    """Mean negative log-likelihood, probabilities kept 1e-6 from 0 and 1."""
    q = np.clip(p, 1e-6, 1 - 1e-6)
    return float(-np.mean(y * np.log(q) + (1 - y) * np.log(1 - q)))


def select(
    cases: Sequence[Case],
    candidates: Sequence[Candidate],
    signs: Mapping[str, int],
    most_terms: int = MOST_TERMS,
) -> Chosen:
    """Forward selection among candidates, then the strength of the fit; cases are decided ones.

    A step that turns the sign of any chosen term against `signs` (feature -> +1 or -1) is refused.
    """
    training = Training.of(cases)
    pool = _shortlist(training, candidates, signs)
    chosen: list[Term] = []
    columns = np.empty((len(cases), 0))
    best = float(training.losses(columns[None])[0])
    path = [("prior", best)]
    while pool and len(chosen) < most_terms:
        X = np.stack([np.column_stack([columns, column]) for _, column in pool])
        right = right_signs([[*chosen, term] for term, _ in pool], X, training.y, signs)
        losses = np.where(right, training.losses(X), np.inf)
        k = int(losses.argmin())
        if losses[k] > best * (1 - LEAST_GAIN):
            break
        term, columns, best = pool[k][0], X[k], float(losses[k])
        chosen.append(term)
        path.append((_name(term), best))
        pool = [(other, column) for other, column in pool if not _same(other, term)]
    rated = [(float(training.losses(columns[None], C)[0]), C) for C in STRENGTHS]
    return Chosen(tuple(chosen), min(rated)[1] if chosen else 1.0, tuple(path))


def right_signs(
    terms: Sequence[Sequence[Term]], X: Array, y: Array, signs: Mapping[str, int]
) -> Mask:
    """Whether no coefficient goes against its sign, of a fit of each design X [m, n, d]: [m]."""
    wanted = np.array([[signs.get(term.feature, 0) for term in own] for own in terms])
    right: Mask = np.logical_and.reduce(wanted * fit_many(X, y, 1.0)[:, 1:] >= -1e-9, axis=1)
    return right


def _shortlist(
    training: Training, candidates: Sequence[Candidate], signs: Mapping[str, int]
) -> list[tuple[Term, Array]]:
    """The candidates with the least loss alone, each with its column; equal columns once."""
    found: dict[bytes, tuple[Term, Array]] = {}
    for candidate in candidates:
        term = fit_term(candidate, training.cases)
        if term is not None:
            column = term.column(training.cases)
            found.setdefault(np.round(column, 9).tobytes(), (term, column))
    if not found:
        return []
    pool = list(found.values())
    X = np.stack([column[:, None] for _, column in pool])
    right = right_signs([[term] for term, _ in pool], X, training.y, signs)
    losses = np.where(right, training.losses(X), np.inf)
    best = np.argsort(losses, kind="stable")[:SHORTLIST]
    return [pool[k] for k in best if np.isfinite(losses[k])]


def _same(one: Term, other: Term) -> bool:
    """Whether two terms are one feature for overlapping families."""
    overlap = one.family is None or other.family is None or one.family == other.family
    return one.feature == other.feature and overlap


def _name(term: Term) -> str:
    scale = "" if term.transform == "identity" else f"{term.transform} of "
    return f"{scale}{term.feature}" + (f" ({term.family})" if term.family else "")
