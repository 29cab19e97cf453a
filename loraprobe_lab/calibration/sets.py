"""The cases of one adapter set together: their outcome, and first rounds that are drawn from them.

A first round is drawn: the gain of each composition is its measured gain with a normal error,
rounded to whole items. The composition with the largest gain counts, as in a verdict. The size of
the error follows from the interval and the number of items of the measured gain
(`item_deviation`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from loraprobe.sample_size import Z95
from loraprobe_lab.calibration.cases import Case


@dataclass(frozen=True)
class MeasuredSet:
    """The cases of one adapter set, one for each composition."""

    cases: tuple[Case, ...]

    @property
    def outcome(self) -> Case:
        """The set as one case: the largest gain, with an interval that decides as a set does."""
        best = max(self.cases, key=lambda case: case.gain)
        ends = [max(case.ci95[k] for case in self.cases) for k in (0, 1)]
        return replace(best, ci95=(ends[0], ends[1]))

    def first_round(self, items: int, rng: np.random.Generator) -> tuple[Case, float, float]:
        """A drawn first round: the best composition, its gain and its standard error."""
        found = []
        for case in self.cases:
            one = item_deviation(case)
            drawn = case.gain + rng.standard_normal() * one / math.sqrt(items)
            # Two items more, one gained and one lost, keep the error above 0 (Bonett and Price).
            error = math.sqrt(one**2 / (items + 2) + 2 / (items + 2) ** 2)
            found.append((case, round(drawn * items) / items, error))
        return max(found, key=lambda one: one[1])


def item_deviation(case: Case) -> float:
    """The standard deviation of one item's gain, from the interval and the number of items.

    Items of one cluster widen the interval, but a first round asks items of as many clusters as
    possible. The deviation is therefore at most the largest that right and wrong answers allow
    with this gain and baseline: the composition loses at most what the baseline knows, and gains at
    most what it does not know. Two items more, one gained and one lost, keep it above 0.
    """
    found = (case.ci95[1] - case.ci95[0]) / 2 / Z95 * math.sqrt(case.n)
    lost = max(min(case.baseline, 1 - case.baseline - case.gain), -case.gain, 0.0)
    differ = (case.n * (case.gain + 2 * lost) + 2) / (case.n + 2)
    return min(found, math.sqrt(max(differ - case.gain**2, 0.0)))


def sets_of(cases: Sequence[Case]) -> list[MeasuredSet]:
    """The cases by adapter set, in their order."""
    found: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        found.setdefault(case.set_key, []).append(case)
    return [MeasuredSet(tuple(own)) for own in found.values()]
