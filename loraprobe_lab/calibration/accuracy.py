"""The figures of probabilities on left-out adapter sets, and what of them is shipped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loraprobe.defaults import PILOT_ITEMS

FEWEST_DECIDED = 15  # sets on one kind of base; half a 95 % interval of a share is then 0.25


@dataclass(frozen=True)
class Figures:
    """Measures of probabilities of sets; NaN if undefined.

    null: the 95th percentile of the AUROC if outcomes are exchanged. reference: the Brier score of
    the share that gained. likely: how many sets have a probability of at least LIKELY_FROM, the
    mean over draws; wrong: the share of failures in them; called: their share of the successes.
    """

    decided: int
    auroc: float
    null: float
    brier: float
    reference: float
    likely: float
    wrong: float
    called: float


def recorded(
    figures: Mapping[str, Figures], where: Mapping[str, str], items: int = PILOT_ITEMS
) -> dict[str, Any]:
    """What `calibration.json` holds of each kind of base with enough decided sets.

    An AUROC that exchanged outcomes reach too tells nothing, so it is None.
    """
    return {
        kind: {
            "where": where[kind],
            "sets": row.decided,
            "items": items,
            "auroc": round(row.auroc, 3) if row.auroc > row.null else None,
            "brier": round(row.brier, 3),
            "likely": round(row.likely),
            "wrong": round(row.wrong, 3) if row.likely else None,
        }
        for kind, row in figures.items()
        if row.decided >= FEWEST_DECIDED
    }
