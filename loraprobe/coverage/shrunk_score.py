"""What shrinking an adapter alone costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from loraprobe.coverage._adding import asked, rights, score_row
from loraprobe.coverage._contract import CoverageProbe, Study
from loraprobe.coverage._models import MOST_TEXTS, Models
from loraprobe.records import Coverage
from loraprobe.scoring import Voice


@dataclass(frozen=True)
class ShrunkScore(CoverageProbe):
    """Score of each adapter alone at gate 1/n, the share that `uniform` leaves it.

    `baseline` is its score at gate 1 on the same items, so what is missing was lost to size and not
    to a partner. For every part of a task. `items`: at most so many of each part are asked.
    """

    items: int = MOST_TEXTS

    formula: ClassVar[str] = "mean_i [answer_i of adapter a at gate 1/n is right]"
    paper: ClassVar[str] = "-"

    def measure(self, study: Study, models: Models) -> Iterable[Coverage]:
        if models.n < 2:
            return
        gate = 1 / models.n
        voices = [Voice.alone(i, models.n, gate) for i in range(models.n)]
        for part in study.all_parts:
            questions = asked(study, part, self.items)
            if not questions:
                continue
            scored = rights(study, models, part, questions, voices)
            for name, right in zip(study.adapters, scored, strict=True):
                yield score_row(
                    "shrunk_score", study, part, questions, right,
                    adapters=(name,), gate=gate, against=(name,),
                )  # fmt: skip
