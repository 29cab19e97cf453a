"""How far one adapter would move the base where another one is needed."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from loraprobe.coverage._contract import CoverageProbe, Study
from loraprobe.coverage._models import MOST_TEXTS, Models
from loraprobe.records import Coverage


@dataclass(frozen=True)
class HiddenCrosstalk(CoverageProbe):
    """Size of one adapter's effect on the base's layers over that of another, on the same prompts.

    `adapters` is (who talks, who is needed). The effect is E||dW h|| over E||W0 h|| of the
    unmodified base's hidden states h, averaged over modules. Each part stands with the adapter
    that is best at it, if it is better than the base; the row "all" holds every pair on all
    prompts. Worked texts are those of the best adapter at them. `items`: at most so many prompts
    of each part are read.
    """

    items: int = MOST_TEXTS

    formula: ClassVar[str] = (
        "mean_m E||s_a B_a A_a h|| / E||W_0 h|| over the same of b, h of the base"
    )
    paper: ClassVar[str] = "arXiv 2505.22934 (orthogonal updates may still interfere)"

    def measure(self, study: Study, models: Models) -> Iterable[Coverage]:
        if models.n < 2:
            return
        name, task = "hidden_crosstalk", study.task.name
        weights, sights = [], []
        for part in study.all_parts:
            sight = models.sight(study, part, self.items)
            if sight is None or not sight.n:
                continue
            weights.append(sight.n)
            sights.append(sight.effect)
            owner = study.specialist(part)
            for other in study.adapters if owner is not None else ():
                if other != owner:
                    own = study.adapters.index(owner or "")
                    value = _ratio(sight.effect[study.adapters.index(other)], sight.effect[own])
                    who = (other, owner or "")
                    yield Coverage(name, task, value, sight.n, part.hop, who, part=part.name)
        total = sum(weights)
        for i, j in itertools.permutations(range(models.n), 2) if total else ():
            first, second = (
                sum(w * effect[k] for w, effect in zip(weights, sights, strict=True)) / total
                for k in (i, j)
            )
            who = (study.adapters[i], study.adapters[j])
            yield Coverage(name, task, _ratio(first, second), total, None, who, part="all")


def _ratio(effect: float, own: float) -> float | None:
    return effect / own if own > 0 else None
