"""Features of the weights alone: sizes, directions, signs. Of several pairs the extreme counts."""

from __future__ import annotations

import math

from loraprobe.verdict.features._shelf import Registry, on
from loraprobe.verdict.features._view import View, highest, lowest, mean

SHELF: Registry = {}


def _log(value: float) -> float | None:
    return math.log(value) if value > 0 else None


@on(SHELF, "log of the largest ratio between two adapters' norms")
def norm_log_ratio(view: View) -> float | None:
    return highest(_log(value) for value in view.measured("norm_ratio"))


@on(SHELF, "log of the adapters' norms relative to the weights they change, on average")
def relative_norm_log_mean(view: View) -> float | None:
    return mean(_log(value) for value in view.measured("relative_norm"))


@on(SHELF, "log of the largest norm relative to the weights it changes")
def relative_norm_log_max(view: View) -> float | None:
    return highest(_log(value) for value in view.measured("relative_norm"))


@on(SHELF, "overlap of the directions that two updates read")
def overlap_in(view: View) -> float | None:
    return highest(view.measured("subspace_overlap", "in"))


@on(SHELF, "overlap of the directions that two updates write")
def overlap_out(view: View) -> float | None:
    return highest(view.measured("subspace_overlap", "out"))


@on(SHELF, "log of the overlap of written directions over that of random subspaces")
def overlap_out_over_chance(view: View) -> float | None:
    return highest(
        _log(m.value / m.chance)
        for m in view.evidence.diagnostics
        if m.name == "subspace_overlap" and m.module is None and m.side == "out"
        if m.value is not None and m.chance
    )


@on(SHELF, "largest cosine of two updates")
def cosine_max(view: View) -> float | None:
    return highest(view.measured("cosine"))


@on(SHELF, "smallest cosine of two updates")
def cosine_min(view: View) -> float | None:
    return lowest(view.measured("cosine"))


@on(SHELF, "largest share of entries on which two updates have opposite signs")
def sign_conflict(view: View) -> float | None:
    return highest(view.measured("sign_conflict"))


@on(SHELF, "energy that is left of two updates when they are added, relative to theirs")
def energy_ratio(view: View) -> float | None:
    return lowest(view.measured("energy_ratio"))


@on(SHELF, "log of the updates' stable rank, on average")
def stable_rank_log_mean(view: View) -> float | None:
    return mean(_log(value) for value in view.measured("stable_rank"))


@on(SHELF, "error of averaging A and B apart")
def cross_terms(view: View) -> float | None:
    return highest(view.measured("cross_terms"))


@on(SHELF, "likeness of the A of two adapters row by row")
def shared_initialisation(view: View) -> float | None:
    return highest(view.measured("shared_initialisation"))
