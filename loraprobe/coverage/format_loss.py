"""How foreign one adapter finds the other's way of answering, where a task has no hops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from loraprobe.coverage._contract import (
    BASE,
    CoverageProbe,
    Question,
    Request,
    Study,
    mean,
)
from loraprobe.coverage._statistics import mean_interval
from loraprobe.records import Coverage


@dataclass(frozen=True)
class FormatLoss(CoverageProbe):
    """Loss of one adapter, in nats a token, on the answers that another one gives by itself.

    `adapters` is (who reads, whose answers); `baseline` is the base's loss on the same answers.
    Far above the baseline, the adapters were trained to answer in different formats, and each
    pulls a composition away from the other's. Only for tasks without hops. `items`: at most so
    many items are asked.
    """

    items: int = 50

    formula: ClassVar[str] = "mean_i -log p_a(answer of b to i) / tokens"
    paper: ClassVar[str] = "-"

    def requests(self, study: Study) -> Iterable[Request]:
        for reader, writer in itertools.permutations(study.adapters, 2):
            for question, answer in self._answers(study, writer):
                yield Request(question.prompt, answer, reader)
                yield Request(question.prompt, answer, BASE)

    def rows(self, study: Study, likely: Mapping[Request, Any]) -> Iterable[Coverage]:
        for reader, writer in itertools.permutations(study.adapters, 2):
            answers = self._answers(study, writer)
            losses, base = (
                [-likely[Request(q.prompt, answer, of)].per_token for q, answer in answers]
                for of in (reader, BASE)
            )
            if losses:
                yield Coverage(
                    "format_loss",
                    study.task.name,
                    mean(losses),
                    len(losses),
                    adapters=(reader, writer),
                    baseline=mean(base),
                    ci95=mean_interval(
                        losses, [question.cluster for question, _ in answers], (0.0, math.inf)
                    ),
                )

    def _answers(self, study: Study, writer: str) -> list[tuple[Question, str]]:
        if study.task.has_hops:
            return []
        target = study.parts[0]
        texts = study.text(writer, target)
        return [
            (question, texts[question.item])
            for question in study.sample(target, self.items)
            if texts.get(question.item, "").strip()
        ]
