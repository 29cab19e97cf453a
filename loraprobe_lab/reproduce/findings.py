"""Numbers with intervals, judged against the margin by a stated rule.

A `Test` is one difference and which side of the margin a claim puts it on. A `Finding` is a claim
with all its tests: it holds if every test says so, does not hold if some test says the opposite,
and is not decided otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Outcome = Literal["yes", "no", "undecided"]
Standing = Literal["holds", "does not hold", "not decided"]


@dataclass(frozen=True)
class Test:
    """A difference with its 95 % interval; `side` is where the claim says that it lies.

    Claimed "above" the margin: yes if the lower end lies above it, no if the upper end lies below
    it. Claimed "below": the other way round.
    """

    __test__ = False  # pytest: no test case

    where: str
    value: float
    low: float
    high: float
    n: int
    side: Literal["above", "below"]
    margin: float
    note: str = ""

    @property
    def outcome(self) -> Outcome:
        above, below = self.low > self.margin, self.high < self.margin
        if not (above or below):
            return "undecided"
        return "yes" if above == (self.side == "above") else "no"


@dataclass(frozen=True)
class Finding:
    """A qualitative claim, and whether it held here. `where`: the questions it is about."""

    code: str
    claim: str
    where: str
    rule: str
    tests: tuple[Test, ...]
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many tests say yes, no, undecided."""
        found = Counter(test.outcome for test in self.tests)
        return {key: found.get(key, 0) for key in ("yes", "no", "undecided")}

    @property
    def standing(self) -> Standing:
        """What the tests say together; without any test nothing is decided."""
        if not self.tests:
            return "not decided"
        counts = self.counts
        if counts["no"]:
            return "does not hold"
        return "not decided" if counts["undecided"] else "holds"
