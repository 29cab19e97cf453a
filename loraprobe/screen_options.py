"""The options of `loraprobe screen` that no other command takes."""

from __future__ import annotations

from dataclasses import dataclass

from loraprobe.declarations import EVALUATION, option
from loraprobe.defaults import KEEP, SCREENING_ITEMS, SCREENING_LEAST
from loraprobe.task_options import TaskOptions


@dataclass(frozen=True)
class ScreenOptions(TaskOptions):
    """How many items choose, how many sets of adapters are proved, how long it may take."""

    items: int = option(
        SCREENING_ITEMS,
        EVALUATION,
        "Items of each task on which every adapter is asked alone; the others prove the choice.",
        least=SCREENING_LEAST,
    )
    keep: int = option(
        KEEP, EVALUATION, "Sets of adapters that are composed and proved.", least=1, most=64
    )
    budget: float | None = option(
        None, EVALUATION, "Minutes that the run may take; what was found by then is told.", least=0
    )
