"""Whether two adapters are right on the same items, where a task has no hops."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from loraprobe.coverage._contract import CoverageProbe, Request, Study, mean
from loraprobe.coverage._singles import Singles
from loraprobe.coverage._statistics import share_interval
from loraprobe.records import Coverage


@dataclass(frozen=True)
class Agreement(CoverageProbe):
    """Share of items on which two adapters alone are both right or both wrong.

    `baseline` is what two adapters of these scores show if one knows nothing of the other:
    p q + (1 - p)(1 - q). Only for tasks without hops.
    """

    formula: ClassVar[str] = "mean_i [a is right on i] = [b is right on i]"
    paper: ClassVar[str] = "-"

    def rows(self, study: Study, likely: Mapping[Request, Any]) -> Iterable[Coverage]:
        singles = Singles.of(study)
        if singles is None:
            return
        for first, second in itertools.combinations(singles.right, 2):
            one, other = singles.right[first], singles.right[second]
            same = [float(one[item] == other[item]) for item in singles.items]
            p, q = singles.score(first), singles.score(second)
            yield Coverage(
                "agreement",
                study.task.name,
                mean(same),
                len(same),
                adapters=(first, second),
                ci95=share_interval(same, singles.clusters),
                baseline=p * q + (1 - p) * (1 - q),
            )
