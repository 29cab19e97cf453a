"""The errors of probabilities on left-out adapter sets, and what of them is shipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loraprobe.defaults import LIKELY_FROM, PILOT_ITEMS
from loraprobe_lab.calibration.fit import Array

EXCHANGES = 200  # of outcomes, for the null
FEWEST_DECIDED = 15  # sets on one kind of base; half a 95 % interval of a share is then 0.25


@dataclass(frozen=True)
class Figures:
    """Measures of probabilities of sets; NaN if undefined.

    decided, gained: how many sets take part, and how many of them gained. silent: the share of
    draws without a probability, on all sets; they are left out of the rest. null: the 95th
    percentile of the AUROC if outcomes are exchanged. reference: the Brier score of the share that
    gained. likely: how many sets have a probability of at least LIKELY_FROM, the mean over draws;
    wrong: the share of failures in them; called: their share of the successes.
    """

    decided: int
    gained: int
    silent: float
    auroc: float
    null: float
    brier: float
    reference: float
    likely: float
    wrong: float
    called: float


def figures(labels: Sequence[int | None], p: Array, kinds: Sequence[str] | None = None) -> Figures:
    """The figures of probabilities p [draws, sets]; NaN for a draw without one.

    labels: 1 for a set that gained, 0 for a failure, None for one that takes no part. The AUROC is
    computed within each of `kinds` and averaged over those that have both outcomes; without kinds
    it is that of all sets. Its null exchanges the outcomes of the sets of a kind.
    """
    nan = float("nan")
    silent = float(np.isnan(p).mean()) if p.size else nan
    kept = [i for i, label in enumerate(labels) if label is not None]
    y = np.array([labels[i] for i in kept], dtype=float)
    own = np.array([kinds[i] if kinds else "" for i in kept])
    p = p[:, kept]
    likely, rng = p >= LIKELY_FROM, np.random.default_rng(0)
    called, gained = float(likely.sum()), likely[:, y == 1]
    null = [_auroc(_exchanged(y, own, rng), p[:1], own) for _ in range(EXCHANGES)]
    return Figures(
        decided=len(y),
        gained=int(y.sum()),
        silent=silent,
        auroc=_auroc(y, p, own),
        null=float(np.nanquantile(null, 0.95)) if np.isfinite(null).any() else nan,
        brier=float(np.nanmean((p - y) ** 2)) if np.isfinite(p).any() else nan,
        reference=float(y.mean() * (1 - y.mean())) if len(y) else nan,
        likely=called / len(p),
        wrong=float(likely[:, y == 0].sum() / called) if called else nan,
        called=float(gained.mean()) if gained.size else nan,
    )


def _auroc(y: Array, p: Array, kinds: Any) -> float:
    """The mean over draws and over kinds with both outcomes; NaN without such a kind."""
    found = []
    for kind in np.unique(kinds):
        drawn = []
        for draw in p[:, kinds == kind]:
            ones, zeros = (draw[(y[kinds == kind] == k) & ~np.isnan(draw)] for k in (1, 0))
            if len(ones) and len(zeros):
                above = (ones[:, None] > zeros) + 0.5 * (ones[:, None] == zeros)
                drawn.append(float(above.mean()))
        if drawn:
            found.append(float(np.mean(drawn)))
    return float(np.mean(found)) if found else float("nan")


def _exchanged(y: Array, kinds: Any, rng: np.random.Generator) -> Array:
    mixed = y.copy()
    for kind in np.unique(kinds):
        mixed[kinds == kind] = rng.permutation(y[kinds == kind])
    return mixed


def recorded(found: Mapping[str, Figures], where: Mapping[str, str]) -> dict[str, Any]:
    """What `calibration.json` holds of each kind of base with enough decided sets.

    An AUROC that exchanged outcomes reach too tells nothing, so it is None.
    """
    return {
        kind: {
            "where": where[kind],
            "sets": row.decided,
            "items": PILOT_ITEMS,
            "auroc": round(row.auroc, 3) if row.auroc > row.null else None,
            "brier": round(row.brier, 3),
            "likely": round(row.likely),
            "wrong": round(row.wrong, 3) if row.likely else None,
        }
        for kind, row in found.items()
        if row.decided >= FEWEST_DECIDED
    }
