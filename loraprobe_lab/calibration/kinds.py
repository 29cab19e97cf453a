"""Forecast and measured gain for each kind of adapter sets on one base, as a Markdown page.

`python -m loraprobe_lab.calibration.kinds CASES BASE` prints the page for the base of that name.

The shipped map is judged as it is; nothing is fitted. A composition gained if its measured gain
exceeds the margin; it is decided if the whole interval of its gain lies on one side. The signs of a
case agree if forecast and measured gain lie on one side of the margin. The null of an AUROC
exchanges whole sets of one kind, because the three compositions of a set are no independent cases.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from loraprobe.defaults import LIKELY_FROM, MARGIN
from loraprobe.verdict.calibration import Calibration, shipped
from loraprobe_lab.calibration.cases import METHODS, Case, read_cases
from loraprobe_lab.calibration.fit import Array
from loraprobe_lab.experiments.pages import markdown_table, number, render

Indices = NDArray[np.intp]
DRAWS = 1000
HEAD = (
    "kind, sets, cases, gained, signs agree, AUROC (95 % of the null), decided, of them gained, "
    "with a probability, Brier score (of the mean), called likely, of them wrong"
).split(", ")


@dataclass(frozen=True)
class KindFigures:
    """The figures of some cases; NaN where undefined.

    null: the 95th percentile of the AUROC if sets are exchanged. covered: the decided cases to
    which the map gives a probability; brier is its score on them, reference that of their share.
    """

    sets: int
    cases: int
    gained: int
    agree: float
    auroc: float
    null: float
    decided: int
    decided_gained: int
    covered: int
    brier: float
    reference: float
    likely: int
    wrong: int

    def row(self, name: str) -> list[str]:
        """The figures as a row of a table."""
        cells = (
            *(name, self.sets, self.cases, self.gained, number(self.agree, 2)),
            f"{number(self.auroc, 2)} ({number(self.null, 2)})",
            *(self.decided, self.decided_gained, self.covered),
            f"{number(self.brier, 2)} ({number(self.reference, 2)})",
            *(self.likely, self.wrong),
        )
        return list(map(str, cells))


def figures_of_kind(
    cases: Sequence[Case], calibration: Calibration, margin: float = MARGIN, seed: int = 0
) -> KindFigures:
    """The figures of cases; the AUROC is the mean of those within a kind that has both outcomes."""
    gained = np.array([case.gain > margin for case in cases])
    forecasts = np.array([case.forecast for case in cases])
    decided = [case for case in cases if case.label(margin) is not None]
    covered = [
        case
        for case in decided
        if not calibration.why_outside(case.forecast, case.adapters, case.kind)
    ]
    y = np.array([case.label(margin) for case in covered], dtype=float)
    p = np.array(
        [calibration.probability(margin, c.forecast, c.error, c.baseline) for c in covered]
    )
    called = p >= LIKELY_FROM
    return KindFigures(
        sets=len({case.set_key for case in cases}),
        cases=len(cases),
        gained=int(gained.sum()),
        agree=float(np.mean((forecasts > margin) == gained)),
        auroc=within_kinds(cases, forecasts, gained),
        null=_null(cases, forecasts, gained, np.random.default_rng(seed)),
        decided=len(decided),
        decided_gained=sum(case.label(margin) or 0 for case in decided),
        covered=len(covered),
        brier=float(np.mean((p - y) ** 2)) if len(y) else float("nan"),
        reference=float(np.mean((y.mean() - y) ** 2)) if len(y) else float("nan"),
        likely=int(called.sum()),
        wrong=int((called & (y == 0)).sum()),
    )


def within_kinds(cases: Sequence[Case], scores: Array, gained: Array) -> float:
    """The mean over kinds of the AUROC of scores [cases]; NaN without a kind of both outcomes."""
    kinds = np.array([case.scenario for case in cases])
    return _mean_auroc([np.flatnonzero(kinds == kind) for kind in np.unique(kinds)], scores, gained)


def _mean_auroc(groups: Sequence[Indices], scores: Array, gained: Array) -> float:
    found = [_auroc(scores[own], gained[own]) for own in groups]
    known = [value for value in found if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _auroc(scores: Array, gained: Array) -> float:
    """The share of pairs of a success and a failure that the scores rank right; ties count half."""
    ones = int(gained.sum())
    zeros = len(gained) - ones
    if not ones or not zeros:
        return float("nan")
    return float((rankdata(scores)[gained].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def _null(cases: Sequence[Case], scores: Array, gained: Array, rng: np.random.Generator) -> float:
    """The 95th percentile of `within_kinds` if the scores of sets of one kind are exchanged."""
    kinds: dict[str, dict[tuple[str, str], dict[str, int]]] = {}
    for i, case in enumerate(cases):
        kinds.setdefault(case.scenario, {}).setdefault(case.set_key, {})[case.method] = i
    places = [
        np.array([[own[method] for method in METHODS if method in own] for own in sets.values()])
        for sets in kinds.values()
    ]
    found = []
    for _ in range(DRAWS):
        other = scores.copy()
        for sets in places:  # [sets, methods]
            other[sets] = scores[sets[rng.permutation(len(sets))]]
        found.append(_mean_auroc([sets.ravel() for sets in places], other, gained))
    return float(np.quantile(found, 0.95))


def table(cases: Sequence[Case], calibration: Calibration, margin: float = MARGIN) -> str:
    """The Markdown table of all kinds, with a row for all together."""
    rows = []
    for kind in sorted({case.scenario for case in cases}):
        own = [case for case in cases if case.scenario == kind]
        rows.append(figures_of_kind(own, calibration, margin).row(kind))
    rows.append(figures_of_kind(cases, calibration, margin).row("**all**"))
    return markdown_table(rows, HEAD)


def table_of_sets(cases: Sequence[Case]) -> str:
    """The Markdown table of all sets: the best score alone, and forecast -> gain of each method."""
    rows, found = [], {(case.set_key, case.method): case for case in cases}
    for key in dict.fromkeys(case.set_key for case in cases):
        own = [found[key, method] for method in METHODS]
        gains = [f"{case.forecast:+.2f} → {case.gain:+.2f}" for case in own]
        rows.append([key[1], str(own[0].adapters), f"{own[0].baseline:.2f}", *gains])
    return markdown_table(rows, ["set", "adapters", "best alone", *METHODS])


def page(cases: Sequence[Case], base: str) -> str:
    """The page for the cases of one base, judged by the shipped map."""
    own = [case for case in cases if case.base == base]
    return render(
        "kinds",
        base=base,
        cases=len(own),
        sets=len({case.set_key for case in own}),
        margin=MARGIN,
        kinds=table(own, shipped()),
        table_of_sets=table_of_sets(own),
    )


if __name__ == "__main__":
    print(page(read_cases(sys.argv[1]), sys.argv[2]), end="")
