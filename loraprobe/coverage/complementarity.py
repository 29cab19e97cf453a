"""Whether adapters solve different items, where a task has no hops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from loraprobe.coverage._contract import CoverageProbe, Request, Study, mean
from loraprobe.coverage._singles import Singles
from loraprobe.coverage._statistics import difference_interval
from loraprobe.records import Coverage


@dataclass(frozen=True)
class Complementarity(CoverageProbe):
    """Share of items that some adapter solves alone, minus the share of the best adapter.

    What a composition would gain if it kept everything that any of them can; 0 where one adapter
    solves all that the others solve. Only for tasks without hops.
    """

    formula: ClassVar[str] = "mean_i [some adapter is right on i] - max_a mean_i [a is right on i]"
    paper: ClassVar[str] = "-"

    def rows(self, study: Study, likely: Mapping[Request, Any]) -> Iterable[Coverage]:
        singles = Singles.of(study)
        if singles is None or len(singles.right) < 2:
            return
        best = singles.right[singles.best]
        added = [
            max(right[item] for right in singles.right.values()) - best[item]
            for item in singles.items
        ]
        yield Coverage(
            "complementarity",
            study.task.name,
            mean(added),
            len(added),
            adapters=tuple(singles.right),
            ci95=difference_interval(added, singles.clusters),
            baseline=0.0,
        )
