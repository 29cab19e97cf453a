"""Who knows which step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from loraprobe.coverage._contract import CoverageProbe, Request, Study, adapters_of, mean
from loraprobe.coverage._statistics import share_interval
from loraprobe.records import Coverage


@dataclass(frozen=True)
class HopAccuracy(CoverageProbe):
    """Share of items on which the base, and each adapter alone, answers a hop right.

    Hops are asked with gold answers of earlier hops. `baseline` is what always giving the
    commonest answer scores.
    """

    formula: ClassVar[str] = "mean_i [answer_i is right]"
    paper: ClassVar[str] = "-"

    def rows(self, study: Study, likely: Mapping[Request, Any]) -> Iterable[Coverage]:
        for part in study.parts:
            if part.hop is None:
                continue
            clusters = {question.item: question.cluster for question in part.questions}
            for system in study.systems:
                right = study.right(system, part)
                items = [item for item in clusters if item in right]
                if not items:
                    continue
                hits = [right[item] for item in items]
                yield Coverage(
                    "hop_accuracy",
                    study.task.name,
                    mean(hits),
                    len(hits),
                    part.hop,
                    adapters_of(system),
                    share_interval(hits, [clusters[i] for i in items]),
                    part.guess(),
                )
