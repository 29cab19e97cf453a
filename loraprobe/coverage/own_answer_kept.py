"""How often an adapter would say what all of them say together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from loraprobe.coverage._adding import added
from loraprobe.coverage._contract import CoverageProbe, Study, mean
from loraprobe.coverage._models import MOST_TEXTS, Models
from loraprobe.coverage._statistics import mean_interval
from loraprobe.records import Coverage


@dataclass(frozen=True)
class OwnAnswerKept(CoverageProbe):
    """Share of the tokens that `additive_score` decodes which one adapter alone would choose too.

    The adapter reads the same text at the same gate, so this says who has the say. `baseline` is
    the base's share. `items`: at most so many are asked.
    """

    items: int = MOST_TEXTS

    formula: ClassVar[str] = "mean [argmax z_a = argmax (z_0 + sum_b (z_b - z_0))]"
    paper: ClassVar[str] = "-"

    def measure(self, study: Study, models: Models) -> Iterable[Coverage]:
        for part, gate, questions, written in added(study, models, self.items):
            clusters = [question.cluster for question in questions]
            base = mean([text.kept[0] for text in written])
            for i, name in enumerate(study.adapters):
                kept = [text.kept[i + 1] for text in written]
                yield Coverage(
                    "own_answer_kept",
                    study.task.name,
                    mean(kept),
                    len(kept),
                    part.hop,
                    (name,),
                    mean_interval(kept, clusters, (0.0, 1.0)),
                    base,
                    part.name,
                    gate,
                )
