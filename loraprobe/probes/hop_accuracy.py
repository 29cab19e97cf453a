"""Measures which hops the base and each adapter know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from loraprobe.evaluation.asking import ScoreRequest
from loraprobe.evaluation.statistics import wilson
from loraprobe.probes._probe import BASE, CoverageProbe, ProbeContext, mean
from loraprobe.records import Coverage
from loraprobe.tasks import normalize_answer


@dataclass(frozen=True)
class HopAccuracy(CoverageProbe):
    """Share of items for which the base, and each adapter alone, answers a hop correctly.

    Prompts of later hops contain the gold answers of earlier hops. `baseline` is the accuracy of
    always giving the most frequent answer.
    """

    formula: ClassVar[str] = "mean_i [answer_i is right]"
    paper: ClassVar[str] = "-"

    def rows(self, context: ProbeContext, likely: Mapping[ScoreRequest, Any]) -> Iterable[Coverage]:
        for part in context.parts:
            if part.hop is None:
                continue
            clusters = {q.item.id: q.item.cluster for q in part.questions}
            accepted = ({normalize_answer(a) for a in q.answers} for q in part.questions)
            counts = Counter(answer for answers in accepted for answer in answers)
            for system in (BASE, *context.adapters):
                right = context.right(system, part)
                items = [item for item in clusters if item in right]
                if not items:
                    continue
                hits = [right[item] for item in items]
                yield Coverage(
                    "hop_accuracy",
                    context.task.name,
                    mean(hits),
                    len(hits),
                    part.hop,
                    () if system == BASE else (system,),
                    wilson(np.array(hits), np.array([clusters[i] for i in items])),
                    max(counts.values()) / len(part.questions),
                )
