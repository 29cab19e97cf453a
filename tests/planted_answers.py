"""An evaluator that answers from planted shares of right answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loraprobe.pipeline.evaluator import Evaluator
from loraprobe.records import QUESTION, ItemResult


@dataclass(frozen=True)
class Planted(Evaluator):
    """Answers from shares of right ones; `asked` counts the items of each system."""

    answers: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    asked: dict[str, set[tuple[str, str]]] = field(default_factory=dict)

    def run(self, systems: Any, *_: Any, **__: Any) -> list[ItemResult]:
        rows = []
        for system in systems:
            for task in self.tasks:
                for item in task.items:
                    name = task.name.partition("@")[0]
                    value = self.answers[system.content or system.name, name][int(item.id)]
                    self.asked.setdefault(system.name, set()).add((name, item.id))
                    rows.append(
                        ItemResult(
                            system.name,
                            task.name,
                            QUESTION,
                            item.id,
                            "exact_match",
                            float(value),
                            "",
                            item.cluster,
                        )
                    )
        return rows
