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
from scipy.stats import rankdata

from loraprobe.defaults import LIKELY_FROM, MARGIN
from loraprobe.verdict.calibration import Calibration, shipped
from loraprobe_lab.calibration.cases import METHODS, Case, read_cases
from loraprobe_lab.calibration.fit import Array

DRAWS = 1000
HEAD = (
    "kind, sets, cases, gained, signs agree, AUROC (95 % of the null), decided, of them gained, "
    "with a probability, Brier score (of the mean), called likely, of them wrong"
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
    found = [_auroc(scores[kinds == kind], gained[kinds == kind]) for kind in np.unique(kinds)]
    known = [value for value in found if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _auroc(scores: Array, gained: Array) -> float:
    """The share of pairs of a success and a failure that the scores rank right; ties count half."""
    ones = int(gained.sum())
    zeros = len(gained) - ones
    if not ones or not zeros:
        return float("nan")
    return float((rankdata(scores)[gained].sum() - ones * (ones + 1) / 2) / (ones * zeros))


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


def table_of_sets(cases: Sequence[Case]) -> str:
    """The Markdown table of all sets: the best score alone, and forecast -> gain of each method."""
    lines = [f"| set | adapters | best alone | {' | '.join(METHODS)} |", f"|{' --- |' * 6}"]
    found = {(case.set_key, case.method): case for case in cases}
    for key in dict.fromkeys(case.set_key for case in cases):
        own = [found[key, method] for method in METHODS]
        gains = [f"{case.forecast:+.2f} → {case.gain:+.2f}" for case in own]
        cells = (key[1], own[0].adapters, f"{own[0].baseline:.2f}", *gains)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def page(cases: Sequence[Case], base: str) -> str:
    """The page for the cases of one base, judged by the shipped map."""
    own = [case for case in cases if case.base == base]
    sets = len({case.set_key for case in own})
    return (
        f"# Forecast and measured gain on {base}\n\n"
        f"{len(own)} compositions of {sets} adapter sets, none of which was chosen by what its "
        "composition gives.\n"
        f"A composition gained if its measured gain exceeds {MARGIN}. Signs agree if forecast and "
        "gain lie on\none side of it. It is decided if the interval (95 %) of its gain lies on one "
        "side. The AUROC of the\nforecast is within kind, on all compositions; the null exchanges "
        "whole sets. The Brier score is that\nof the map that was shipped when this page was "
        "written, on decided compositions to which it gives a\nprobability, beside the score of "
        "their mean.\n\n"
        f"{table(own, shipped())}\n\n## The sets\n\n"
        "Best score of the base or a single adapter, and for each composition forecast → measured "
        f"gain.\n\n{table_of_sets(own)}"
    )


def _number(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}"


if __name__ == "__main__":
    print(page(read_cases(sys.argv[1]), sys.argv[2]))
