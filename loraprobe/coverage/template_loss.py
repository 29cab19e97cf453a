"""How foreign one adapter finds the steps that another one writes down."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from loraprobe.coverage._contract import BASE, CoverageProbe, Request, Study, mean
from loraprobe.coverage._models import MOST_TEXTS, Models
from loraprobe.coverage._statistics import mean_interval
from loraprobe.records import Coverage


@dataclass(frozen=True)
class TemplateLoss(CoverageProbe):
    """Loss of each adapter, in nats a token, on worked texts of the adapter that is best at them.

    `adapters` is (who reads, whose texts); `baseline` is the base's loss on the same texts. Far
    above it, the reader would pull a composition away from the template. Only for tasks that are
    asked step by step. `items`: at most so many texts are written and read.
    """

    items: int = MOST_TEXTS

    formula: ClassVar[str] = "mean_i -log p_a(worked text of b to i) / tokens"
    paper: ClassVar[str] = "-"

    def measure(self, study: Study, models: Models) -> Iterable[Coverage]:
        writer, worked = models.worked_texts(study, self.items)
        texts = [(question, text) for question, text in worked if text.strip()]
        readers = [name for name in study.adapters if name != writer]
        if not texts or not readers:
            return
        asked = {of: [Request(q.prompt, text, of) for q, text in texts] for of in (BASE, *readers)}
        likely = models.likely([request for own in asked.values() for request in own])
        losses = {of: [-likely[r].per_token for r in own] for of, own in asked.items()}
        clusters = [question.cluster for question, _ in texts]
        for reader in readers:
            yield Coverage(
                "template_loss",
                study.task.name,
                mean(losses[reader]),
                len(texts),
                None,
                (reader, writer),
                mean_interval(losses[reader], clusters, (0.0, math.inf)),
                mean(losses[BASE]),
                "cot",
            )
