"""Adapter sets with several tasks: the errors of the probability that every skill is kept.

The sets are stored with the answers of all systems, so a first round is drawn from the answers
themselves: some items of each task, judged by the code of a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from loraprobe.defaults import PILOT_ITEMS
from loraprobe_lab.calibration.answered import AnsweredSet
from loraprobe_lab.calibration.cases import METHODS, Case
from loraprobe_lab.calibration.figures import Figures, figures, recorded
from loraprobe_lab.calibration.fit import Array, fit

SETS = "several.jsonl.gz"
DEFAULT = ", by default"  # ends the name of the row of sets as they are asked by default
DRAWS = 10  # first rounds of each set
WHERE = {
    "small": "left-out small bases that the lab trained",
    "natural": "SmolLM2-135M-Instruct, left out of the fit",
}


def left_out(sets: Sequence[AnsweredSet], cases: Sequence[Case]) -> Array:
    """The probability of each set, its base left out of the fit: [draws, sets], NaN for none."""
    rng = np.random.default_rng(0)
    bases = dict.fromkeys(one.base for one in sets)
    fits = {base: fit([case for case in cases if case.base != base]) for base in bases}
    found = np.zeros((DRAWS, len(sets)))
    for i, one in enumerate(sets):
        found[:, i] = [one.first_round(PILOT_ITEMS, rng, fits[one.base]) for _ in range(DRAWS)]
    return found


def measure(
    sets: Sequence[AnsweredSet], cases: Sequence[Case]
) -> dict[str, tuple[list[AnsweredSet], Figures]]:
    """The sets on each kind of base, with their figures: of both forms of a set, and of each.

    A set has two forms, because with the router per prompt few sets fail: with all systems that
    are asked by default, and with METHODS alone.
    """
    found = {}
    for kind in WHERE:
        own = [one for one in sets if one.base_kind == kind]
        if own:
            forms = [*own, *(one.under(METHODS) for one in own)]
            outcomes, p = [one.outcome for one in forms], left_out(forms, cases)
            n = len(own)
            found[kind] = own, figures(outcomes, p)
            found[kind + DEFAULT] = own, figures(outcomes[:n], p[:, :n])
            names = ", ".join(METHODS)
            found[f"{kind}, {names} alone"] = own, figures(outcomes[n:], p[:, n:])
    return found


def errors(rows: Mapping[str, tuple[list[AnsweredSet], Figures]]) -> dict[str, Any]:
    """What `calibration.json` holds: the figures of both forms, and how many sets are clear."""
    both = {
        kind: replace(rows[kind][1], decided=rows[kind + DEFAULT][1].decided)
        for kind in WHERE
        if kind in rows
    }
    return recorded(both, WHERE)
