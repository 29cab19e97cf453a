"""Whether a token router would turn to the adapter that a part needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from loraprobe.coverage._contract import CoverageProbe, Study
from loraprobe.coverage._models import MOST_TEXTS, Models
from loraprobe.records import Coverage


@dataclass(frozen=True)
class GateAgreement(CoverageProbe):
    """Share of modules and tokens at which the router gives the needed adapter more than half.

    Needed is the adapter that is best at a part, if it is better than the base; `baseline` is the
    mean over all adapters. Gates are those on hidden states of the unmodified base, in modules
    that at least two adapters have. `items`: at most so many prompts of each part are read.
    """

    items: int = MOST_TEXTS

    formula: ClassVar[str] = "mean over modules and tokens of [g_best(h) > 1/2]"
    paper: ClassVar[str] = "arXiv 2405.11157"

    def measure(self, study: Study, models: Models) -> Iterable[Coverage]:
        for part in study.all_parts if models.routed else ():
            sight, owner = models.sight(study, part, self.items), study.specialist(part)
            if sight is None or sight.above is None or owner is None:
                continue
            yield Coverage(
                "gate_agreement", study.task.name, sight.above[study.adapters.index(owner)],
                sight.n, part.hop, (owner,), baseline=sum(sight.above) / models.n, part=part.name,
            )  # fmt: skip
