"""What a linear merge would score if the adapters' effects simply added."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from loraprobe.coverage._adding import asked, composed_parts, gates_of, rights, score_row
from loraprobe.coverage._contract import CoverageProbe, Study
from loraprobe.coverage._models import MOST_TEXTS, Models
from loraprobe.records import Coverage
from loraprobe.scoring import Voice


@dataclass(frozen=True)
class AdditiveScore(CoverageProbe):
    """Score of texts written from the base's logits plus what each adapter alone changes in them.

    Greedy decoding in which every adapter reads the same text by itself, at gate 1/n (as `uniform`
    has it) and at gate 1 (as `sum` has it); no two adapters are ever in one model. What a merge
    does differently is interference inside the network. `baseline` is the best of base and single
    adapters on the same items. For the composed question and its form asked step by step; choices
    are taken by the added logits too. `items`: at most so many are asked.
    """

    items: int = MOST_TEXTS

    formula: ClassVar[str] = "mean_i [answer is right], greedy from z = z_0 + sum_a (z_a - z_0)"
    paper: ClassVar[str] = "-"

    def measure(self, study: Study, models: Models) -> Iterable[Coverage]:
        if models.n < 2:
            return
        gates = gates_of(models.n)
        voices = [Voice.added(models.n, gate) for gate in gates]
        for part in composed_parts(study):
            questions = asked(study, part, self.items)
            if not questions:
                continue
            for gate, right in zip(
                gates, rights(study, models, part, questions, voices), strict=True
            ):
                yield score_row(
                    "additive_score", study, part, questions, right,
                    adapters=study.adapters, gate=gate, against=study.systems,
                )  # fmt: skip
