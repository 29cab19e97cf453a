"""How undecided a token router would be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from loraprobe.coverage._contract import CoverageProbe, Study
from loraprobe.coverage._models import MOST_TEXTS, Models
from loraprobe.records import Coverage


@dataclass(frozen=True)
class GateEntropy(CoverageProbe):
    """Entropy of the router's gates on the base's hidden states: 0 certain, 1 all alike.

    Over the logarithm of the number of adapters that share a module, averaged over tokens and
    modules. `items`: at most so many prompts of each part are read.
    """

    items: int = MOST_TEXTS

    formula: ClassVar[str] = "mean over modules and tokens of -sum_a g_a ln g_a / ln k"
    paper: ClassVar[str] = "arXiv 2405.11157"

    def measure(self, study: Study, models: Models) -> Iterable[Coverage]:
        for part in study.all_parts if models.routed else ():
            sight = models.sight(study, part, self.items)
            if sight is not None and sight.entropy is not None:
                yield Coverage(
                    "gate_entropy", study.task.name, sight.entropy, sight.n, part.hop,
                    study.adapters, baseline=1.0, part=part.name,
                )  # fmt: skip
