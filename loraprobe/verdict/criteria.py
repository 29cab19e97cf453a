"""What decides on a composition: criteria, and the weakest of what they say.

A `Criterion` is a figure against its threshold, a `Candidate` a composition with all criteria that
decide on it. A control is beaten if the interval of the difference lies above half the margin, and
as good if it lies below. One threshold serves both, so that more items never turn one into the
other. A control that was not scored is not beaten.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from loraprobe.defaults import COMPRESSION_LIMIT, FEWEST_ITEMS, MARGIN_STEP, MOST_ITEMS
from loraprobe.formatting import gained
from loraprobe.records import Estimate, Gain, ItemPart, Missing, Standing, SystemKind

WEAKEST_FIRST: tuple[Standing, ...] = ("unlikely", "inconclusive", "likely")


def weakest(said: Iterable[Standing]) -> Standing:
    """The weakest of what several criteria say; inconclusive if there are none."""
    return min(said, key=WEAKEST_FIRST.index, default="inconclusive")


@dataclass(frozen=True)
class Criterion(Estimate):
    """An estimate with the threshold that it has to exceed, which `option` sets.

    `needed` items would decide if the figure stays; None if these are more than anybody has.
    """

    threshold: float
    needed: int | None
    option: str = "--margin"

    def __str__(self) -> str:
        return gained(self.value, (self.low, self.high))

    @property
    def outcome(self) -> Standing:
        return self.exceeds(self.threshold)

    def more(self, unit: str = "item") -> str:
        """What would decide: "about 400 items" or "about 48 more clusters of items"."""
        if self.needed is None:
            return f"more than {MOST_ITEMS:,} {unit}s"
        if self.clusters < self.n:
            wanted = math.ceil(self.needed * self.clusters / self.n)
            return f"about {wanted - self.clusters:,} more clusters of {unit}s"
        return f"about {max(self.needed, FEWEST_ITEMS):,} {unit}s"

    def decided_thresholds(self) -> str:
        """The thresholds that these items do decide, "" where there are none."""
        if not math.isfinite(self.high - self.low):  # a single cluster
            return ""
        above = (math.floor(self.high / MARGIN_STEP + 1e-9) + 1) * MARGIN_STEP
        below = (math.ceil(self.low / MARGIN_STEP - 1e-9) - 1) * MARGIN_STEP
        parts = []
        if above < 1:
            parts.append(f"{above:.2f} or more (it is not reached)")
        if below >= 0:
            parts.append(f"{below:.2f} or less (it is reached)")
        return f"these decide {self.option} {' and '.join(parts)}" if parts else ""

    def would_decide(self) -> str:
        """The end of a sentence that says what would decide."""
        if self.needed is not None:
            return f"; {self.more()} would decide if it stays"
        decided = self.decided_thresholds()
        return f"; {self.more()} would be needed" + (f", {decided}" if decided else "")


def criterion(
    estimate: Estimate, threshold: float, option: str = "--margin", like: Estimate | None = None
) -> Criterion:
    """An estimate against a threshold. like: an estimate of items that are clustered alike."""
    n, clusters = estimate.n, estimate.clusters
    if like is not None and like.n:
        clusters = math.ceil(n * like.clusters / like.n)
    needed = estimate.items_for(threshold)
    return Criterion(
        estimate.value, estimate.low, estimate.high, n, clusters, threshold, needed, option
    )


@dataclass(frozen=True)
class Candidate:
    """One composition (or the chain) on one form of the question, with all that decides on it.

    `gain` is that over the best of base and single adapters, `checked` the same by the metric that
    the gold answers need, where that is another one, `controls` the difference to each control.
    `kept` has for each task the share of its specialist's gain that is kept, None if no single
    adapter is shown to differ from the base. `guards` has what it loses of each guard, None where
    it was not asked.
    """

    system: str
    kind: SystemKind
    part: ItemPart
    against: str
    against_part: ItemPart
    gain: Criterion
    controls: Mapping[str, Criterion] = field(default_factory=dict)
    kept: Mapping[str, Criterion | None] = field(default_factory=dict)
    guards: Mapping[str, Criterion | None] = field(default_factory=dict)
    compression_error: float | None = None
    checked: Criterion | None = None

    @property
    def confirmed(self) -> Standing:
        """What the metric allows that the gold answers need: it has to show the gain too."""
        return (
            "likely" if self.checked is None or self.checked.outcome == "likely" else "inconclusive"
        )

    @property
    def retains(self) -> Standing:
        """What the retentions alone say: likely if there are none."""
        shares = self.kept.values()
        if any(share is not None and share.outcome == "unlikely" for share in shares):
            return "unlikely"
        enough = all(share is not None and share.low >= share.threshold for share in shares)
        return "likely" if enough else "inconclusive"

    @property
    def beats_controls(self) -> Standing:
        """What the controls alone say: inconclusive if there are none."""
        return weakest(control.outcome for control in self.controls.values())

    @property
    def enough(self) -> Standing:
        """What the number of clusters allows: with too few of them no gain is `likely`."""
        return "likely" if self.gain.clusters >= FEWEST_ITEMS else "inconclusive"

    @property
    def safe(self) -> Standing:
        """What the guards alone say: likely if there are none, open where one was not asked."""
        said = (one.outcome if one is not None else "inconclusive" for one in self.guards.values())
        return weakest(("likely", *said))

    @property
    def promise(self) -> Standing:
        """The weakest of gain, controls, retention, number of items and metric.

        Unlikely where a guard is lost. What is open of guards does not count, so that it never
        makes another composition the leading one: one attempt at a time may keep them by chance.
        """
        others = (self.beats_controls, self.retains, self.enough, self.confirmed)
        return "unlikely" if self.safe == "unlikely" else weakest((self.gain.outcome, *others))

    @property
    def outcome(self) -> Standing:
        """The weakest of what it promises and the guards."""
        return weakest((self.promise, self.safe))

    def binds(self, said: Standing) -> bool:
        """Whether what one criterion says, and not the gain, makes the outcome."""
        return self.outcome == said != self.gain.outcome

    @property
    def missing(self) -> Missing | None:
        """What keeps the outcome open beside the gain and could be asked; None if nothing does."""
        if self.binds(self.confirmed):
            return "metric"
        if not self.controls and self.binds(self.beats_controls):
            return "controls"
        if self.binds(self.enough):
            return "items"
        return "guard-items" if self.binds(self.safe) and self.safe == "inconclusive" else None

    @property
    def lossy(self) -> bool:
        """Whether compression lost so much of the delta that the method itself was not tested."""
        return (self.compression_error or 0.0) > COMPRESSION_LIMIT


def gain_criterion(gain: Gain, margin: float) -> Criterion:
    """A gain against the margin, with the interval that covers the choice of the best."""
    low, high = gain.adjusted_ci95
    clusters = gain.clusters or gain.n
    return Criterion(gain.difference, low, high, gain.n, clusters, margin, gain.n_needed)
