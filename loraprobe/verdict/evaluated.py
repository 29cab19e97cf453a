"""The decision where merges or routers were scored.

A composition is `likely` if the interval of its gain lies above the margin, it beats the controls,
it retains every skill and FEWEST_ITEMS were asked; it is `unlikely` if one of the first three is
shown to fail. The margin is `Options.margin`, declared in `loraprobe.options`.

*Controls.* A control is beaten if the interval of the difference lies above half the margin, and as
good if it lies below. One threshold serves both, so that more items never turn one into the other.
A control that was not scored is not beaten.

*Forms.* The decision is about merges and routers, and about the form of the question with the
better outcome; of equal outcomes about the one with the larger gain, the plain question on a tie. A
chain composes no weights: it never makes a decision `likely`. Where no composition measured a gain
above the margin, a chain that is shown to be better than everything else by more than the margin
makes it `unlikely` (`chain_outdoes`): whether a composition gains a little is no question any more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from loraprobe.defaults import COMPRESSION_LIMIT, FEWEST_ITEMS, MARGIN, MOST_ITEMS
from loraprobe.records import Decision, Gain, Interval, Score
from loraprobe.sample_size import Z95, items_needed
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.evidence import COMPOSITIONS, Evidence
from loraprobe.verdict.ranking import alone, best_option, compared, difference, option

Outcome = Literal["likely", "open", "unlikely"]
ORDER: dict[Outcome, int] = {"unlikely": 0, "open": 1, "likely": 2}
DECISION: dict[Outcome, Decision] = {
    "likely": "likely",
    "open": "inconclusive",
    "unlikely": "unlikely",
}
STEP = 0.01  # between two margins that are named


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval, and the threshold that it has to exceed, which `option` sets.

    It was measured on `n` items in `clusters` clusters. `needed` items would decide if the figure
    stays; None if these are more than anybody has.
    """

    value: float
    low: float
    high: float
    threshold: float
    n: int
    clusters: int
    needed: int | None
    option: str = "--margin"

    def __str__(self) -> str:
        return fmt.gain(self.value, self.low, self.high)

    @property
    def outcome(self) -> Outcome:
        """Whether the figure exceeds the threshold, as far as its interval shows."""
        if self.low > self.threshold:
            return "likely"
        return "unlikely" if self.high < self.threshold else "open"

    def like(
        self, value: float, ci95: Interval, threshold: float, n: int, option: str = "--margin"
    ) -> Estimate:
        """Another figure, on `n` items that are clustered as those of this one are."""
        clustered = 0 < self.clusters < self.n
        clusters = math.ceil(n * self.clusters / self.n) if clustered else n
        half = value - ci95[0] if value > threshold else ci95[1] - value
        needed = items_needed(n, value - threshold, half / Z95)
        return Estimate(value, *ci95, threshold, n, clusters, needed, option)

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
        if not math.isfinite(self.high - self.low):  # a single cluster
            return ""
        above = (math.floor(self.high / STEP + 1e-9) + 1) * STEP
        below = (math.ceil(self.low / STEP - 1e-9) - 1) * STEP
        told = []
        if above < 1:
            told.append(f"{fmt.number(above)} or more (it is not reached)")
        if below >= 0:
            told.append(f"{fmt.number(below)} or less (it is reached)")
        return f"these decide {self.option} {' and '.join(told)}" if told else ""

    def would_decide(self) -> str:
        """The end of a sentence that says what would decide."""
        if self.needed is not None:
            return f"; {self.more()} would decide if it stays"
        instead = self.instead()
        return f"; {self.more()} would be needed" + (f", {instead}" if instead else "")


def estimate_of(gain: Gain, margin: float) -> Estimate:
    """A gain against the margin."""
    clusters = gain.clusters or gain.n
    return Estimate(gain.difference, *gain.adjusted_ci95, margin, gain.n, clusters, gain.n_needed)


@dataclass(frozen=True)
class Candidate:
    """One composition (or the chain) on one form of the question, with all that decides on it.

    `gain` is that over the best of base and single adapters, `checked` the same by the metric that
    the gold answers need, where that is another one, `controls` the difference to each control.
    `kept` has for each task the share of its specialist's gain that is kept, None if no single
    adapter is shown to differ from the base.
    """

    system: str
    kind: str
    part: str
    against: str
    against_part: str
    gain: Estimate
    controls: Mapping[str, Estimate] = field(default_factory=dict)
    kept: Mapping[str, Estimate | None] = field(default_factory=dict)
    compression_error: float | None = None
    checked: Estimate | None = None

    @property
    def confirmed(self) -> Outcome:
        """What the metric allows that the gold answers need: it has to show the gain too."""
        return "likely" if self.checked is None or self.checked.outcome == "likely" else "open"

    @property
    def retains(self) -> Outcome:
        """What the retentions alone say: likely if there are none."""
        shares = self.kept.values()
        if any(share is not None and share.outcome == "unlikely" for share in shares):
            return "unlikely"
        enough = all(share is not None and share.low >= share.threshold for share in shares)
        return "likely" if enough else "open"

    @property
    def beats_controls(self) -> Outcome:
        """What the controls alone say: open if there are none."""
        outcomes = [control.outcome for control in self.controls.values()]
        return min(outcomes, key=ORDER.__getitem__, default="open")

    @property
    def enough(self) -> Outcome:
        """What the number of clusters allows: with too few of them no gain is `likely`."""
        return "likely" if self.gain.clusters >= FEWEST_ITEMS else "open"

    @property
    def outcome(self) -> Outcome:
        """The weakest of gain, controls, retention, number of items and metric."""
        said = (self.gain.outcome, self.beats_controls, self.retains, self.enough, self.confirmed)
        return min(said, key=ORDER.__getitem__)

    def binds(self, said: Outcome) -> bool:
        """Whether what one criterion says, and not the gain, makes the outcome."""
        return self.outcome == said != self.gain.outcome

    @property
    def lossy(self) -> bool:
        """Whether compression lost so much of the delta that the method itself was not tested."""
        return (self.compression_error or 0.0) > COMPRESSION_LIMIT


Form = tuple[Candidate, ...]  # the compositions on one form of the question, the best first


def decisive_form(evidence: Evidence, plain: Form, steps: Form) -> Form:
    """The form that the decision is about: the one with the better outcome, then the larger gain.

    Where both are `likely` it is the form of the better option (`ranking`). Else a gain step by
    step has to be larger than a plain one by more than a tie.
    """
    if not (plain and steps):
        return plain or steps
    first, second = plain[0], steps[0]
    if first.outcome != second.outcome:
        return max(plain, steps, key=lambda form: ORDER[form[0].outcome])
    if first.outcome == "likely":
        found = [option(evidence, one.system, one.part) for one in (first, second)]
        best = best_option(evidence, filter(None, found))
        return steps if best is not None and best.part == "steps" else plain
    tie = min(first.gain.threshold, MARGIN)
    return steps if second.gain.value > first.gain.value + tie else plain


def decide(form: Form) -> tuple[Decision, bool]:
    """The best outcome of any composition, and whether compression keeps an `unlikely` open.

    form: the decisive one. Compression does so if every composition lost too much to its rank,
    since no method was tested then.
    """
    decision = DECISION[form[0].outcome]
    if decision == "unlikely" and all(candidate.lossy for candidate in form):
        return "inconclusive", True
    return decision, False


def candidates(
    evidence: Evidence, part: str, kinds: tuple[str, ...] = COMPOSITIONS
) -> tuple[Candidate, ...]:
    """All systems of these kinds on one part, the most promising first.

    They stand by outcome, gain, kind (merges before routers) and name. Of several that are `likely`
    the first is the best option (`ranking`).
    """
    found = [_candidate(evidence, system, part) for system in evidence.systems(kinds, part)]
    ordered = sorted(
        (c for c in found if c is not None),
        key=lambda c: (-ORDER[c.outcome], -round(c.gain.value, 9), c.kind, c.system),
    )
    likely = [c.system for c in ordered if c.outcome == "likely"]
    options = [one for name in likely if (one := option(evidence, name, part)) is not None]
    best = best_option(evidence, options)
    first = best.system if best is not None else None
    return tuple(sorted(ordered, key=lambda c: c.system != first))


def chain_gain(evidence: Evidence) -> Candidate | None:
    """The chain's gain over the best of base and single adapters on the plain question."""
    return next(iter(candidates(evidence, "question", ("chain",))), None)


def chain_outdoes(evidence: Evidence, composed: Iterable[Candidate]) -> bool:
    """Whether a chain is shown to be better than every other option by more than the margin.

    False if some composition measured a gain above the margin, or too few items were asked.
    """
    composed, one = list(composed), option(evidence, "chain", "question")
    if one is None or not composed or any(c.gain.value > evidence.margin for c in composed):
        return False
    others = [*alone(evidence), *(option(evidence, c.system, c.part) for c in composed)]
    return composed[0].enough == "likely" and all(
        difference(evidence, one, other, adjusted=True).low > evidence.margin
        for other in filter(None, others)
    )


def _candidate(evidence: Evidence, system: str, part: str) -> Candidate | None:
    gains = [gain for gain in evidence.gains if (gain.system, gain.part) == (system, part)]
    if evidence.several:
        gains = [gain for gain in gains if gain.task is None]
    if not gains:
        return None
    own, rows = gains[0], evidence.scores(system, part)
    gain = estimate_of(own, evidence.margin)
    errors = [row.compression_error for row in rows if row.compression_error is not None]
    return Candidate(
        system,
        str(evidence.kind(system)),
        part,
        own.against,
        own.against_part,
        gain,
        _controls(evidence, system, part, gain),
        {row.task: _kept(row, evidence.retention, gain) for row in rows if evidence.several},
        max(errors, default=None),
        own.checked_ci95
        and gain.like(own.checked or 0.0, own.checked_ci95, evidence.margin, own.n),
    )


def _kept(row: Score, threshold: float, gain: Estimate) -> Estimate | None:
    if row.retention is None or row.retention_ci95 is None:
        return None
    return gain.like(row.retention, row.retention_ci95, threshold, row.n, "--retention")


def _controls(evidence: Evidence, system: str, part: str, gain: Estimate) -> dict[str, Estimate]:
    found = {}
    for name in evidence.systems(("control",), part):
        pair = compared(evidence, system, name, part)
        if pair is not None:
            ends = pair.adjusted_ci95 or pair.ci95
            found[name] = gain.like(pair.difference, ends, evidence.margin / 2, pair.n)
    return found
