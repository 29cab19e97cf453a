"""The decision where merges or routers were scored.

A composition is `likely` if the interval of its gain lies above the margin, it beats the controls
and it retains every skill; it is `unlikely` if one of the three is shown to fail. The margin is
`Options.margin`, declared in `loraprobe.options`.

The decision is about merges and routers. It is about the plain question unless no composition
gains there and one gains step by step. A chain of adapters composes no weights: it never makes a
decision `likely`, and it is the action if it gains and compositions do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loraprobe.defaults import COMPRESSION_LIMIT
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
        return self.low > 0

    @property
    def as_good(self) -> bool:
        """Whether the composition is shown not to exceed the control by the margin."""
        return self.high < self.margin

    @property
    def needed(self) -> int | None:
        """How many items would tell the two apart, if the difference stays."""
        return _needed(self.difference, (self.low, self.high), self.n, 0.0)


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
        """What the controls alone say: unlikely if one that is not beaten is as good."""
        unbeaten = [control for control in self.controls if not control.beaten]
        if not unbeaten:
            return "likely"
        return "unlikely" if any(control.as_good for control in unbeaten) else "open"

    @property
    def outcome(self) -> Outcome:
        """The weakest of gain, controls and retention."""
        return min((self.gains, self.beats_controls, self.retains), key=ORDER.__getitem__)

    @property
    def lossy(self) -> bool:
        """Whether compression lost so much of the delta that the method itself was not tested."""
        return (self.compression_error or 0.0) > COMPRESSION_LIMIT


Form = tuple[Candidate, ...]  # the compositions on one form of the question, the best first


def decisive_form(plain: Form, steps: Form) -> Form:
    """The form that the decision is about: step by step only if that alone gains."""
    if not plain or (steps and steps[0].outcome == "likely" and plain[0].outcome != "likely"):
        return steps
    return plain


def decide(form: Form, other: Form) -> tuple[Decision, str | None]:
    """The best outcome of any composition, and what keeps an `unlikely` open, if anything does.

    "compression": every composition lost too much to its rank, so no method was tested. "steps":
    the step-by-step form is undecided, so it may still gain.
    """
    decision = DECISION[form[0].outcome]
    if decision == "unlikely" and all(candidate.lossy for candidate in form):
        return "inconclusive", "compression"
    if decision == "unlikely" and any(c.part == "steps" and c.outcome == "open" for c in other):
        return "inconclusive", "steps"
    return decision, None


def _needed(value: float, interval: Interval, n: int, threshold: float) -> int | None:
    """How many items bring the nearer end of a 95 % interval past a threshold."""
    half = value - interval[0] if value > threshold else interval[1] - value
    return items_needed(n, value - threshold, half / Z95)
