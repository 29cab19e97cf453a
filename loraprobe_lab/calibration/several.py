"""Adapter sets with several tasks: the errors of the probability that every skill is kept.

The sets are stored with the answers of all systems, so a first round is drawn from the answers
themselves: some items of each task, judged by the code of a verdict.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loraprobe.defaults import PILOT_ITEMS
from loraprobe.verdict.calibration import Coefficients
from loraprobe_lab.calibration.answered import AnsweredSet
from loraprobe_lab.calibration.cases import Case
from loraprobe_lab.calibration.figures import Figures, figures
from loraprobe_lab.calibration.fit import Array, fit

SETS = "several.jsonl.gz"
DRAWS = 10  # first rounds of each set
WHERE = {
    "small": "left-out small bases that the lab trained",
    "natural": "SmolLM2-135M-Instruct, left out of the fit",
}


def left_out(sets: Sequence[AnsweredSet], cases: Sequence[Case]) -> Array:
    """The probability of each set, its base left out of the fit: [draws, sets], NaN for none."""
    rng = np.random.default_rng(0)
    fits = {base: _without(cases, base) for base in dict.fromkeys(one.base for one in sets)}
    found = np.zeros((DRAWS, len(sets)))
    for i, one in enumerate(sets):
        found[:, i] = [one.first_round(PILOT_ITEMS, rng, fits[one.base]) for _ in range(DRAWS)]
    return found


def _without(cases: Sequence[Case], base: str) -> Coefficients:
    kept = [case for case in cases if case.base != base]
    return fit(kept).given(kept[0])


def measure(
    sets: Sequence[AnsweredSet], cases: Sequence[Case]
) -> dict[str, tuple[list[AnsweredSet], Figures]]:
    """The sets on each kind of base, with their figures."""
    found = {}
    for kind in WHERE:
        own = [one for one in sets if one.base_kind == kind]
        if own:
            found[kind] = own, figures([one.outcome for one in own], left_out(own, cases))
    return found
