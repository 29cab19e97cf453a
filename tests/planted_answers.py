"""An evaluator that answers from planted shares of right answers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from loraprobe.pipeline.evaluator import Evaluator
from loraprobe.records import QUESTION, ItemPart, ItemResult


@dataclass(frozen=True)
class Planted(Evaluator):
    """Answers from shares of right ones; `asked` counts the items of each system.

    answers: by system and task; those of another form than the question by its name too.
    """

    answers: dict[tuple[str, ...], np.ndarray] = field(default_factory=dict)
    asked: dict[str, set[tuple[str, str]]] = field(default_factory=dict)

    def run(self, systems: Any, *_: Any, **__: Any) -> list[ItemResult]:
        rows = []
        forms = {ItemPart(key[2]) for key in self.answers if len(key) > 2}
        for system, task in itertools.product(systems, self.tasks):
            name = task.name.partition("@")[0]
            self.asked.setdefault(system.name, set()).update((name, x.id) for x in task.items)
            for part in (QUESTION, *forms):
                form = () if part == QUESTION else (str(part),)
                values = self.answers[system.content or system.name, name, *form]
                rows += [
                    ItemResult(
                        *(system.name, task.name, part, item.id, "exact_match"),
                        *(float(values[int(item.id)]), "", item.cluster),
                    )
                    for item in task.items
                ]
        return rows
