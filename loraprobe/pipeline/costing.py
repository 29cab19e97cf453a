"""`merge-and-eval --dry-run`: what the run would take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from loraprobe.base import Base
from loraprobe.options import Options
from loraprobe.pipeline.commands import Adapters, open_composition
from loraprobe.pipeline.estimating import Estimate, estimate
from loraprobe.pipeline.inputs import Reference
from loraprobe.pipeline.session import Session
from loraprobe.records import Progress
from loraprobe.tasks import Task


def estimate_cost(
    adapters: Adapters,
    *,
    base: Base | Reference = "auto",
    tasks: Sequence[Task | Reference] | Task | Reference,
    options: Options = Options(),
    progress: Progress | None = None,
    written: Sequence[Path] = (),
) -> Estimate:
    """What merge_and_eval of the same inputs would take; nothing is evaluated or written."""
    inputs = open_composition(adapters, base, tasks, options, written)
    return estimate(inputs, Session("merge-and-eval", options, progress))
