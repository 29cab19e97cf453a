"""How many more items would decide, in words; or what the items at hand do decide."""

from __future__ import annotations

import math
from dataclasses import dataclass

from loraprobe.defaults import FEWEST_ITEMS, MOST_ITEMS
from loraprobe.records import Gain, Interval
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.evaluated import Candidate, Control, Retained

STEP = 0.01  # between two margins that are named


@dataclass(frozen=True)
class Undecided:
    """A figure whose interval holds its threshold, and the items that it was measured on.

    `needed` is the number of items that would decide if the figure stays, None for more than
    anybody has. `clusters` counts the clusters of the `n` items. `option` sets the threshold.
    """

    interval: Interval
    n: int
    clusters: int
    needed: int | None
    option: str = "--margin"

    def more(self, unit: str = "item") -> str:
        """What would decide: "about 400 items" or "about 48 more clusters of items"."""
        if self.needed is None:
            return f"more than {MOST_ITEMS:,} {unit}s"
        if self.clusters < self.n:
            wanted = math.ceil(self.needed * self.clusters / self.n)
            return f"about {wanted - self.clusters:,} more clusters of {unit}s"
        return f"about {max(self.needed, FEWEST_ITEMS):,} {unit}s"

    def instead(self) -> str:
        """The thresholds that these items do decide, "" where there are none."""
        low, high = self.interval
        if not math.isfinite(high - low):  # a single cluster
            return ""
        above = (math.floor(high / STEP + 1e-9) + 1) * STEP
        below = (math.ceil(low / STEP - 1e-9) - 1) * STEP
        told = []
        if above < 1:
            told.append(f"{fmt.number(above)} or more (it is not reached)")
        if below >= 0:
            told.append(f"{fmt.number(below)} or less (it is reached)")
        return f"these decide {self.option} {' and '.join(told)}" if told else ""


def of_gain(gain: Gain | Candidate) -> Undecided:
    """The gain of a composition, from its record or as a candidate."""
    if isinstance(gain, Candidate):
        interval, needed = (gain.low, gain.high), gain.needed
    else:
        interval, needed = gain.adjusted_ci95, gain.n_needed
    return Undecided(interval, gain.n, gain.clusters or gain.n, needed)


def of_control(best: Candidate, control: Control) -> Undecided:
    """The difference to a control. Its items are clustered as those of the gain are."""
    clusters = _clusters(best, control.n)
    return Undecided((control.low, control.high), control.n, clusters, control.needed)


def of_retention(best: Candidate, kept: Retained) -> Undecided:
    """The retention on one task, whose items are clustered as those of the gain are."""
    needed = kept.needed(best.threshold)
    clusters = _clusters(best, kept.n)
    return Undecided(kept.ci95 or (0.0, 1.0), kept.n, clusters, needed, "--retention")


def would_decide(open_: Undecided) -> str:
    """The end of a sentence that says what would decide."""
    if open_.needed is not None:
        return f"; {open_.more()} would decide if it stays"
    instead = open_.instead()
    return f"; {open_.more()} would be needed" + (f", {instead}" if instead else "")


def _clusters(best: Candidate, n: int) -> int:
    return math.ceil(n * best.clusters / best.n) if 0 < best.clusters < best.n else n
