"""How a token router would share its gates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from loraprobe.coverage._contract import CoverageProbe, Study
from loraprobe.coverage._models import MOST_TEXTS, Models
from loraprobe.records import Coverage


@dataclass(frozen=True)
class GateShare(CoverageProbe):
    """Mean gate that the router would give each adapter on the base's hidden states.

    Averaged over tokens and over the modules that at least two adapters have, on each part's
    prompts (asked step by step: and on the text that the best adapter writes). `baseline` is 1/n.
    `items`: at most so many prompts of each part are read.
    """

    items: int = MOST_TEXTS

    formula: ClassVar[str] = "mean over modules and tokens of g_a(h), h of the unmodified base"
    paper: ClassVar[str] = "arXiv 2405.11157"

    def measure(self, study: Study, models: Models) -> Iterable[Coverage]:
        for part in study.all_parts if models.routed else ():
            sight = models.sight(study, part, self.items)
            if sight is None or sight.share is None:
                continue
            for adapter, share in zip(study.adapters, sight.share, strict=True):
                yield Coverage(
                    "gate_share", study.task.name, share, sight.n, part.hop, (adapter,),
                    baseline=1 / models.n, part=part.name,
                )  # fmt: skip
