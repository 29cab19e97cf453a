"""What a token router would score if the adapters' effects simply added."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from loraprobe.coverage._adding import asked, composed_parts, rights, score_row
from loraprobe.coverage._contract import CoverageProbe, Study
from loraprobe.coverage._models import MOST_TEXTS, Models
from loraprobe.records import Coverage
from loraprobe.scoring import Voice


@dataclass(frozen=True)
class RoutedScore(CoverageProbe):
    """As `additive_score`, with each adapter at the gates that the router would give it.

    Gates are those of the router on hidden states of the unmodified base, which reads the same
    text; each adapter alone is run under its own share of them. `baseline` is the best of base and
    single adapters on the same items. `items`: at most so many are asked.
    """

    items: int = MOST_TEXTS

    formula: ClassVar[str] = "as additive_score, z_a with gates g_a(h_0) of the base's states h_0"
    paper: ClassVar[str] = "-"

    def measure(self, study: Study, models: Models) -> Iterable[Coverage]:
        if not models.routed:
            return
        for part in composed_parts(study):
            questions = asked(study, part, self.items)
            if questions:
                voice = Voice.added(models.n, 1.0)
                (right,) = rights(study, models, part, questions, [voice], routed=True)
                yield score_row(
                    "routed_score", study, part, questions, right,
                    adapters=study.adapters, gate=None, against=study.systems,
                )  # fmt: skip
