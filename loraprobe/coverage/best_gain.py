"""What the best single adapter adds to the base, where a task has no hops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from loraprobe.coverage._contract import BASE, CoverageProbe, Request, Study, mean
from loraprobe.coverage._singles import Singles
from loraprobe.coverage._statistics import difference_interval
from loraprobe.records import Coverage


@dataclass(frozen=True)
class BestGain(CoverageProbe):
    """Score of the best single adapter minus the base's, on the same items.

    `adapters` names it. The interval is that of the one pair (Bonett and Price, clusters
    respected) and does not cover the choice among adapters. Only for tasks without hops.
    """

    formula: ClassVar[str] = "max_a mean_i [a is right on i] - [base is right on i]"
    paper: ClassVar[str] = "-"

    def rows(self, study: Study, likely: Mapping[Request, Any]) -> Iterable[Coverage]:
        singles = Singles.of(study)
        base = study.right(BASE, study.parts[0])
        if singles is None or not all(item in base for item in singles.items):
            return
        best = singles.best
        gains = [singles.right[best][item] - base[item] for item in singles.items]
        yield Coverage(
            "best_gain",
            study.task.name,
            mean(gains),
            len(gains),
            adapters=(best,),
            ci95=difference_interval(gains, singles.clusters),
            baseline=0.0,
        )
