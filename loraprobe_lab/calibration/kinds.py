"""First round and outcome for each kind of adapter sets on one base, as a Markdown page.

`python -m loraprobe_lab.calibration.kinds CASES BASE` prints the page for the base of that name.
The map is fitted on the cases of all other bases in the file.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

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
    known_of,
    left_out,
    signs_agree,
)
from loraprobe_lab.experiments.pages import render

COMPARED = (FIRST_ROUND, Known(WITH_FORECAST, PILOT_ITEMS), Known(WITH_FORECAST, None))


def page(cases: Sequence[Case], base: str) -> str:
    """The page for the sets of one base, by a fit on the others."""
    every = sets_of(cases)
    at = [i for i, one in enumerate(every) if one.cases[0].base == base]
    sets = [every[i] for i in at]
    told = [known for known in COMPARED if known in known_of(cases)]
    found = {known: left_out(every, LEFT_OUT["bases"], known)[:, at] for known in told}
    return render(
        "kinds",
        base=base,
        sets=sets,
        rows=rows_of(sets, found[FIRST_ROUND]),
        briers={known: figures_of(sets, p).brier for known, p in found.items()},
        methods=METHODS,
        margin=MARGIN,
        items=PILOT_ITEMS,
        likely_from=LIKELY_FROM,
    )


def rows_of(sets: Sequence[MeasuredSet], p: Array) -> list[dict[str, Any]]:
    """The figures of every kind of sets, and of all. p: probabilities [draws, sets]."""
    kinds = np.array([one.cases[0].scenario for one in sets])
    rows = []
    for kind in [*sorted(set(kinds)), "**all**"]:
        at = [i for i, own in enumerate(kinds) if kind in (own, "**all**")]
        own = [sets[i] for i in at]
        outcomes = [one.outcome for one in own]
        rows.append(
            {
                "kind": kind,
                "sets": len(own),
                "gained": sum(case.gain > MARGIN for case in outcomes),
                "agree": signs_agree([case for one in own for case in one.cases]),
                "figures": figures_of(own, p[:, at]),
            }
        )
    return rows


if __name__ == "__main__":
    print(page(read_cases(sys.argv[1]), sys.argv[2]), end="")
