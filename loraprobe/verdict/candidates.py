"""Each composition against what it has to beat: its gain, its controls, its retention.

The gain and its interval are the `Gain` record's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from loraprobe.records import Comparison, Interval
from loraprobe.verdict.evidence import COMPOSITIONS, Evidence

Outcome = Literal["likely", "open", "unlikely"]
ORDER: dict[Outcome, int] = {"unlikely": 0, "open": 1, "likely": 2}


@dataclass(frozen=True)
class Control:
    """One control system against a composition: beaten, or shown to be as good within margin."""

    name: str
    difference: float
    low: float
    high: float
    margin: float
    n: int = 0

    @property
    def needed(self) -> int | None:
        """How many items would tell the two apart, if the difference stays."""
        return items_needed(self.difference, (self.low, self.high), self.n, 0.0)

    @property
    def beaten(self) -> bool:
        return self.low > 0

    @property
    def as_good(self) -> bool:
        return self.high < self.margin


@dataclass(frozen=True)
class Retained:
    """How much of one task's specialist a composition keeps; None where nothing was learned."""

    task: str
    value: float | None
    ci95: Interval | None
    n: int = 0

    def needed(self, threshold: float) -> int | None:
        """How many items of the task would decide, if the retention stays."""
        if self.value is None or self.ci95 is None:
            return None
        return items_needed(self.value, self.ci95, self.n, threshold)


@dataclass(frozen=True)
class Candidate:
    """One composition (or the chain) on one form of the question, with all that decides it."""

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


def candidates(
    evidence: Evidence, part: str, kinds: tuple[str, ...] = COMPOSITIONS
) -> tuple[Candidate, ...]:
    """All systems of these kinds on one part, the most promising first, names breaking ties."""
    found = [_candidate(evidence, system, part) for system in evidence.systems(kinds, part)]
    return tuple(
        sorted(
            (c for c in found if c is not None),
            key=lambda c: (-ORDER[c.outcome], -c.difference, c.system),
        )
    )


def _candidate(evidence: Evidence, system: str, part: str) -> Candidate | None:
    asked = [gain for gain in evidence.gains if gain.part == part]
    if evidence.several:
        asked = [gain for gain in asked if gain.task is None]
    own = next((gain for gain in asked if gain.system == system), None)
    if own is None:
        return None
    rows = evidence.scores(system, part)
    errors = [row.compression_error for row in rows if row.compression_error is not None]
    kept = [Retained(row.task, row.retention, row.retention_ci95, row.n) for row in rows]
    return Candidate(
        system=system,
        kind=str(evidence.kind(system)),
        part=part,
        against=own.against,
        against_part=own.against_part,
        difference=own.difference,
        low=own.adjusted_ci95[0],
        high=own.adjusted_ci95[1],
        n=own.n,
        needed=own.n_needed,
        margin=evidence.margin,
        threshold=evidence.retention,
        controls=_controls(evidence, system, part),
        kept=tuple(kept) if evidence.several else (),
        compression_error=max(errors, default=None),
    )


def items_needed(value: float, interval: Interval, n: int, threshold: float) -> int | None:
    """How many items bring the nearer bound past a threshold, if the value stays.

    An interval shrinks with the root of n. None where the value sits on the threshold, or so near
    that a million items would not do, and where one observation leaves the interval unbounded.
    """
    distance = abs(value - threshold)
    half = value - interval[0] if value > threshold else interval[1] - value
    if distance < 1e-9 or half <= 0 or n <= 0 or not math.isfinite(half):
        return None
    needed = math.ceil(round(n * (half / distance) ** 2, 6))
    return max(n + 1, needed) if needed <= 1_000_000 else None


def _rows(evidence: Evidence, system: str, against: str, part: str) -> list[Comparison]:
    return [
        c for c in evidence.comparisons if (c.system, c.against, c.part) == (system, against, part)
    ]


def pool(rows: list[Comparison], tasks: tuple[str, ...]) -> Comparison | None:
    """The macro mean of one pair's comparisons over all tasks; None unless every task has one.

    Tasks have items of their own, so the squared half-widths add up: the mean over T tasks has
    the root of their sum, divided by T.
    """
    rows = sorted({row.task: row for row in rows}.values(), key=lambda row: row.task)
    if not rows or tuple(row.task for row in rows) != tasks:
        return None
    if len(rows) == 1:
        return rows[0]
    mean = sum(row.difference for row in rows) / len(rows)

    def interval(pairs: list[tuple[float, Interval]]) -> Interval:
        below = math.sqrt(sum((d - ci[0]) ** 2 for d, ci in pairs)) / len(pairs)
        above = math.sqrt(sum((ci[1] - d) ** 2 for d, ci in pairs)) / len(pairs)
        return mean - below, mean + above

    adjusted = [(r.difference, r.adjusted_ci95) for r in rows if r.adjusted_ci95 is not None]
    return Comparison(
        rows[0].system,
        rows[0].against,
        " + ".join(tasks),
        rows[0].part,
        mean,
        interval([(row.difference, row.ci95) for row in rows]),
        sum(row.n for row in rows),
        interval(adjusted) if len(adjusted) == len(rows) else None,
    )


def _controls(evidence: Evidence, system: str, part: str) -> tuple[Control, ...]:
    found = []
    for name in evidence.systems(("control",), part):
        pair = pool(_rows(evidence, system, name, part), evidence.task_names)
        if pair is not None:
            low, high = pair.adjusted_ci95 or pair.ci95
            found.append(Control(name, pair.difference, low, high, evidence.margin, pair.n))
    return tuple(found)
