"""Forecast and measured gain for each kind of adapter sets on one base, as a Markdown table.

`python -m loraprobe_lab.calibration.kinds CASES BASE` prints the table for the base of that name.

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
from sklearn.metrics import roc_auc_score

from loraprobe.defaults import LIKELY_FROM, MARGIN
from loraprobe.verdict.calibration import Calibration, shipped
from loraprobe_lab.calibration.cases import Case, read_cases
from loraprobe_lab.calibration.fit import Array

DRAWS = 2000
HEAD = (
    "kind, sets, cases, gained, signs agree, AUROC of the forecast (95 % of the null), decided, "
    "gained, with a probability, Brier score (of the mean), called likely, wrong"
)


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

    def row(self, name: str) -> str:
        """The figures as a row of a table."""
        cells = (
            *(name, self.sets, self.cases, self.gained, _number(self.agree)),
            f"{_number(self.auroc)} ({_number(self.null)})",
            *(self.decided, self.decided_gained, self.covered),
            f"{_number(self.brier)} ({_number(self.reference)})",
            *(self.likely, self.wrong),
        )
        return f"| {' | '.join(map(str, cells))} |"


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
    rng = np.random.default_rng(seed)
    null = [within_kinds(cases, forecasts[_exchanged(cases, rng)], gained) for _ in range(DRAWS)]
    return KindFigures(
        sets=len({case.set_key for case in cases}),
        cases=len(cases),
        gained=int(gained.sum()),
        agree=float(np.mean((forecasts > margin) == gained)),
        auroc=within_kinds(cases, forecasts, gained),
        null=float(np.quantile(null, 0.95)),
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
    found = [
        float(roc_auc_score(gained[kinds == kind], scores[kinds == kind]))
        for kind in np.unique(kinds)
        if len(np.unique(gained[kinds == kind])) == 2
    ]
    return float(np.mean(found)) if found else float("nan")


def _exchanged(cases: Sequence[Case], rng: np.random.Generator) -> list[int]:
    """For each case the index of the same method's case in another set of its kind."""
    places = {(case.set_key, case.method): i for i, case in enumerate(cases)}
    kinds: dict[str, list[tuple[str, str]]] = {}
    for case in cases:
        sets = kinds.setdefault(case.scenario, [])
        if case.set_key not in sets:
            sets.append(case.set_key)
    other: dict[tuple[str, str], tuple[str, str]] = {}
    for sets in kinds.values():
        drawn = [sets[i] for i in rng.permutation(len(sets))]
        other.update(zip(sets, drawn, strict=True))
    return [places[other[case.set_key], case.method] for case in cases]


def table(cases: Sequence[Case], calibration: Calibration, margin: float = MARGIN) -> str:
    """The Markdown table of all kinds, with a row for all together."""
    head = HEAD.split(", ")
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for kind in sorted({case.scenario for case in cases}):
        own = [case for case in cases if case.scenario == kind]
        lines.append(figures_of_kind(own, calibration, margin).row(kind))
    lines.append(figures_of_kind(cases, calibration, margin).row("**all**"))
    return "\n".join(lines)


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}"


if __name__ == "__main__":
    path, base = sys.argv[1:]
    print(table([case for case in read_cases(path) if case.base == base], shipped()))
