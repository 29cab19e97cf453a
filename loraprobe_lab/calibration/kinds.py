"""Forecast, first round and outcome for each kind of adapter sets on one base, as a Markdown page.

`python -m loraprobe_lab.calibration.kinds CASES BASE` prints the page for the base of that name.
The map is fitted on the cases of all other bases in the file. A composition gained if its measured
gain exceeds the margin. Signs agree if forecast and gain lie on one side of the margin.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np

from loraprobe.defaults import LIKELY_FROM, MARGIN, PILOT_ITEMS
from loraprobe_lab.calibration.cases import METHODS, Case, read_cases
from loraprobe_lab.calibration.fit import WITH_FORECAST, Array
from loraprobe_lab.calibration.sets import MeasuredSet, sets_of
from loraprobe_lab.calibration.validation import (
    FIRST_ROUND,
    LEFT_OUT,
    Known,
    figures_of,
    left_out,
    signs_agree,
)
from loraprobe_lab.experiments.pages import number, percent

COMPARED = (FIRST_ROUND, Known(WITH_FORECAST, PILOT_ITEMS), Known(WITH_FORECAST, None))
HEAD = (
    "kind, sets, gained, signs agree, decided, of them gained, AUROC (null), "
    "Brier score (of the share), called likely, of them wrong, successes called"
)


def page(cases: Sequence[Case], base: str) -> str:
    """The page for the sets of one base, by a fit on the others."""
    every = sets_of(cases)
    at = [i for i, one in enumerate(every) if one.cases[0].base == base]
    sets = [every[i] for i in at]
    found = {known: left_out(every, LEFT_OUT["bases"], known)[:, at] for known in COMPARED}
    others = "; ".join(
        f"{known} {number(figures_of(sets, p).brier, 2)}" for known, p in found.items()
    )
    return (
        f"# Forecast, first round and outcome on {base}\n\n"
        f"{len(sets)} adapter sets, none of which was chosen by what its compositions give, each "
        f"under {', '.join(METHODS)}.\nA set gained if its best composition gained more than "
        f"{MARGIN}; it is decided if the interval (95 %) of\none composition's gain lies above "
        "that, or all lie below. Signs agree if forecast and gain of a\ncomposition lie on one "
        f"side of it. The other figures are of the probability after a first round of\n"
        f"{PILOT_ITEMS} items, drawn from the measured gains and their errors, on decided sets, "
        f"by a map that was fitted\nwithout this base. A set is called likely from "
        f"{LIKELY_FROM} on.\n\n"
        f"{table(sets, found[FIRST_ROUND])}\n\n"
        f"Brier score by what is known: {others}.\n\n## The sets\n\n"
        "Best score of the base or a single adapter, and for each composition forecast → measured "
        f"gain.\n\n{table_of_sets(sets)}"
    )


def table(sets: Sequence[MeasuredSet], p: Array) -> str:
    """The Markdown table of all kinds, with a row for all. p: probabilities [draws, sets]."""
    head = HEAD.split(", ")
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    kinds = np.array([one.cases[0].scenario for one in sets])
    for kind in sorted(set(kinds)):
        own = np.flatnonzero(kinds == kind).tolist()
        lines.append(_row(kind, [sets[i] for i in own], p[:, own]))
    return "\n".join([*lines, _row("**all**", sets, p)])


def _row(name: str, sets: Sequence[MeasuredSet], p: Array) -> str:
    cases = [case for one in sets for case in one.cases]
    found, outcomes = figures_of(sets, p), [one.outcome for one in sets]
    cells = (
        *(name, len(sets), sum(case.gain > MARGIN for case in outcomes)),
        number(signs_agree(cases), 2),
        *(found.decided, sum(case.label(MARGIN) or 0 for case in outcomes if case.tasks == 1)),
        f"{number(found.auroc, 2)} ({number(found.null, 2)})",
        f"{number(found.brier, 2)} ({number(found.reference, 2)})",
        *(number(found.likely, 1), percent(found.wrong), percent(found.called)),
    )
    return f"| {' | '.join(map(str, cells))} |"


def table_of_sets(sets: Sequence[MeasuredSet]) -> str:
    """The Markdown table of all sets: the best score alone, and forecast -> gain of each method."""
    lines = [f"| set | adapters | best alone | {' | '.join(METHODS)} |", f"|{' --- |' * 6}"]
    for one in sets:
        found = {case.method: case for case in one.cases}
        own = [found[method] for method in METHODS]
        gains = [f"{case.forecast:+.2f} → {case.gain:+.2f}" for case in own]
        cells = (own[0].adapter_set, own[0].adapters, f"{own[0].baseline:.2f}", *gains)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(read_cases(sys.argv[1]), sys.argv[2]))
