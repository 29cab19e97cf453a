"""How much two adapters speak to the same tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from loraprobe.coverage._adding import added
from loraprobe.coverage._contract import CoverageProbe, Study, mean
from loraprobe.coverage._models import MOST_TEXTS, Models
from loraprobe.coverage._statistics import mean_interval
from loraprobe.records import Coverage


@dataclass(frozen=True)
class EffectOverlap(CoverageProbe):
    """Cosine of what two adapters change in the next token's logits, along the added text.

    Averaged over the tokens that `additive_score` decodes, then over items; logits are centred
    over the vocabulary. Near 1 the two push the same tokens, below 0 they contradict each other.
    `items`: at most so many are asked.
    """

    items: int = MOST_TEXTS

    formula: ClassVar[str] = "mean cos(z_a - z_0, z_b - z_0)"
    paper: ClassVar[str] = "-"

    def measure(self, study: Study, models: Models) -> Iterable[Coverage]:
        for part, gate, questions, written in added(study, models, self.items):
            clusters = [question.cluster for question in questions]
            for i, j in itertools.combinations(range(models.n), 2):
                cosines = [text.overlap[i + 1][j + 1] for text in written]
                yield Coverage(
                    "effect_overlap",
                    study.task.name,
                    mean(cosines),
                    len(cosines),
                    part.hop,
                    (study.adapters[i], study.adapters[j]),
                    mean_interval(cosines, clusters, (-1.0, 1.0)),
                    0.0,
                    part.name,
                    gate,
                )
