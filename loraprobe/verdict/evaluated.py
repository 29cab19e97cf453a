"""The decision where merges or routers were scored.

A composition is `likely` if the interval of its gain lies above the margin, it beats the controls
by the margin, it retains every skill and FEWEST_ITEMS were asked; it is `unlikely` if one of the
first three is shown to fail. The margin is `Options.margin`, declared in `loraprobe.options`.

*Controls.* A control is beaten if the interval of the difference lies above the margin, and as good
if it lies below. One threshold serves both, so that more items never turn one into the other. A
control that was not scored is not beaten.

*Forms.* The decision is about merges and routers, and about the form of the question with the
better outcome; of equal outcomes about the one with the larger gain, the plain question on a tie. A
chain composes no weights: it never makes a decision `likely`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loraprobe.defaults import COMPRESSION_LIMIT, FEWEST_ITEMS, MARGIN
from loraprobe.records import Decision, Interval
from loraprobe.sample_size import Z95, items_needed

Outcome = Literal["likely", "open", "unlikely"]
ORDER: dict[Outcome, int] = {"unlikely": 0, "open": 1, "likely": 2}
DECISION: dict[Outcome, Decision] = {
    "likely": "likely",
    "open": "inconclusive",
    "unlikely": "unlikely",
}


@dataclass(frozen=True)
class Control:
    """The paired difference of a composition to one control system."""

    name: str
    difference: float
    low: float
    high: float
    margin: float
    n: int = 0

    @property
    def beaten(self) -> bool:
        """Whether the composition is shown to exceed the control by the margin."""
        return self.low > self.margin

    @property
    def as_good(self) -> bool:
        """Whether the composition is shown not to exceed the control by the margin."""
        return self.high < self.margin

    @property
    def needed(self) -> int | None:
        """How many items would decide between the two, if the difference stays."""
        return _needed(self.difference, (self.low, self.high), self.n, self.margin)


@dataclass(frozen=True)
class Retained:
    """The share of its specialist's gain that a composition keeps on one task.

    `value` is None if no single adapter is shown to differ from the base.
    """

    task: str
    value: float | None
    ci95: Interval | None
    n: int = 0

    def needed(self, threshold: float) -> int | None:
        """How many items of the task would decide, if the retention stays."""
        if self.value is None or self.ci95 is None:
            return None
        return _needed(self.value, self.ci95, self.n, threshold)


@dataclass(frozen=True)
class Candidate:
    """One composition (or the chain) on one form of the question, with all that decides on it.

    `difference` and [`low`, `high`] are its gain over the best of base and single adapters.
    `clusters` counts the clusters of the `n` items.
    """

    system: str
    kind: str
    part: str
    against: str
    against_part: str
    difference: float
    low: float
    high: float
    n: int
    needed: int | None
    margin: float
    threshold: float
    controls: tuple[Control, ...] = ()
    kept: tuple[Retained, ...] = ()
    compression_error: float | None = None
    clusters: int = 0

    @property
    def gains(self) -> Outcome:
        """What the gain alone says."""
        if self.low > self.margin:
            return "likely"
        return "unlikely" if self.high < self.margin else "open"

    @property
    def retains(self) -> Outcome:
        """What the retentions alone say: likely if there are none."""
        intervals = [kept.ci95 for kept in self.kept]
        if any(ci is not None and ci[1] < self.threshold for ci in intervals):
            return "unlikely"
        enough = all(ci is not None and ci[0] >= self.threshold for ci in intervals)
        return "likely" if enough else "open"

    @property
    def beats_controls(self) -> Outcome:
        """What the controls alone say: unlikely if one is as good, open if there are none."""
        if any(control.as_good for control in self.controls):
            return "unlikely"
        beaten = bool(self.controls) and all(control.beaten for control in self.controls)
        return "likely" if beaten else "open"

    @property
    def enough(self) -> Outcome:
        """What the number of clusters allows: with too few of them no gain is `likely`."""
        return "likely" if self.clusters >= FEWEST_ITEMS else "open"

    @property
    def outcome(self) -> Outcome:
        """The weakest of gain, controls, retention and number of items."""
        said = (self.gains, self.beats_controls, self.retains, self.enough)
        return min(said, key=ORDER.__getitem__)

    @property
    def lossy(self) -> bool:
        """Whether compression lost so much of the delta that the method itself was not tested."""
        return (self.compression_error or 0.0) > COMPRESSION_LIMIT


Form = tuple[Candidate, ...]  # the compositions on one form of the question, the best first


def decisive_form(plain: Form, steps: Form) -> Form:
    """The form that the decision is about: the one with the better outcome, then the larger gain.

    A gain step by step has to be larger than a plain one by more than a tie.
    """
    if not (plain and steps):
        return plain or steps
    first, second = plain[0], steps[0]
    if first.outcome != second.outcome:
        return max(plain, steps, key=lambda form: ORDER[form[0].outcome])
    tie = min(first.margin, MARGIN)
    return steps if second.difference > first.difference + tie else plain


def decide(form: Form) -> tuple[Decision, bool]:
    """The best outcome of any composition, and whether compression keeps an `unlikely` open.

    form: the decisive one. Compression does so if every composition lost too much to its rank,
    since no method was tested then.
    """
    decision = DECISION[form[0].outcome]
    if decision == "unlikely" and all(candidate.lossy for candidate in form):
        return "inconclusive", True
    return decision, False


def _needed(value: float, interval: Interval, n: int, threshold: float) -> int | None:
    """How many items bring the nearer end of a 95 % interval past a threshold."""
    half = value - interval[0] if value > threshold else interval[1] - value
    return items_needed(n, value - threshold, half / Z95)
