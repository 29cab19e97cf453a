"""What the single adapters would score if somebody chose the right one for every item."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loraprobe.evaluation import statistics
from loraprobe.evaluation.systems import System
from loraprobe.evaluation.table import tabulate, task_names
from loraprobe.records import FORMS, ItemResult, Oracle


def oracles(results: Sequence[ItemResult], systems: Sequence[System]) -> tuple[Oracle, ...]:
    """One row for each task and form of the question that at least two single adapters answered.

    The rows are about the items that all of them answered. Losses are neither right nor wrong, so
    they have no rows.
    """
    names = [system.name for system in systems if system.kind == "adapter"]
    rows = []
    for task in task_names(results) if len(names) > 1 else []:
        for part in FORMS:
            table = tabulate(results, [(name, part) for name in names], task)
            complete = np.isfinite(table.values).all(axis=1)
            if not (table.bounded and complete.any()):
                continue
            values = table.values[complete]
            answered = values.max(axis=1)
            rows.append(
                Oracle(
                    task,
                    part,
                    tuple(names),
                    float(answered.mean()),
                    statistics.wilson(answered, table.clusters[complete]),
                    len(answered),
                    float(1 - (1 - values.mean(axis=0)).prod()),
                )
            )
    return tuple(rows)
