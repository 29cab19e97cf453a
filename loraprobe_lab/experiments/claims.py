"""The paper's qualitative claims (arXiv 2506.13479), each with the rule that decides it here.

"Succeeds" and "fails" are said of the gain of the best of uniform, sum and arrow over the best of
base and single adapters, which may answer in their better form: the interval covers the choice of
the best among compositions and baselines.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Literal

from loraprobe.records import Gain, Interval
from loraprobe_lab.experiments.matrix import Matrix, share, system_names
from loraprobe_lab.world import Scenario
from loraprobe_lab.worlds.known import table

CLAIMS = table("claims")["claims"]
Outcome = Literal["yes", "no", "undecided"]
Side = Literal["above", "below"]
Standing = Literal["holds", "does not hold", "not decided"]
Measure = Callable[[str], Gain | None]  # of a size


@dataclass(frozen=True)
class ClaimTest:
    """A difference with its 95 % interval; `side` is the claimed side of the margin.

    Claimed "above": the outcome is yes if the lower end lies above the margin, no if the upper end
    lies below it. Claimed "below": the other way round.
    """

    where: str
    value: float
    low: float
    high: float
    n: int
    side: Side
    margin: float
    note: str = ""

    @property
    def outcome(self) -> Outcome:
        above, below = self.low > self.margin, self.high < self.margin
        if not (above or below):
            return "undecided"
        return "yes" if above == (self.side == "above") else "no"


@dataclass(frozen=True)
class Claim:
    """A qualitative claim, and whether it held here. `where`: the questions it is about.

    It holds if every difference says so, does not hold if some difference says the opposite, and
    is not decided otherwise, or without any difference.
    """

    code: str
    claim: str
    where: str
    rule: str
    tests: tuple[ClaimTest, ...]
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many differences say yes, no, undecided."""
        found = Counter(test.outcome for test in self.tests)
        return {key: found.get(key, 0) for key in ("yes", "no", "undecided")}

    @property
    def standing(self) -> Standing:
        counts = self.counts
        if counts["no"]:
            return "does not hold"
        return "not decided" if counts["undecided"] or not self.tests else "holds"


@dataclass(frozen=True)
class Subject:
    """The subjects of one experiment's claims.

    shared: template -> its name in a claim. familiar: the name set that the base knows best and the
    one that it knows least, if the experiment has them. disjoint: name sets whose facts no base has
    read.
    """

    title: str
    shared: Mapping[str, str]
    names: Mapping[str, str] = field(default_factory=dict)
    familiar: tuple[str, str] | None = None
    disjoint: tuple[str, ...] = ()


def claims(matrix: Matrix, subject: Subject) -> list[Claim]:
    """Every claim of the paper for each of its sets of questions."""
    found = [one for group in matrix.groups for one in _of_group(matrix, group, subject)]
    found += [_both_fail(matrix, group) for group in subject.disjoint]
    if subject.familiar is not None:
        most, least = subject.familiar
        found += [_familiarity(matrix, most, least, one) for one in matrix.templates]
    return found


def _finding(
    name: str, where: str, tests: Iterable[ClaimTest], code: str = "", **words: str
) -> Claim:
    """The claim of this name in `data/claims.json`; `words` fill its gaps and are its notes."""
    row = CLAIMS[name]
    claim = row["claim"].format(**words)
    notes = {key: text for key, text in words.items() if key in ("beyond", "raised")}
    return Claim(code or name, claim, where, row["rule"], tuple(tests), notes)


def _of_group(matrix: Matrix, group: str, subject: Subject) -> Iterator[Claim]:
    """The claims about one set of questions."""
    two, three = matrix.scenario("plain", 2), matrix.scenario("plain", 3)

    def over_singles(scenario: Scenario) -> Measure:
        return lambda size: matrix.gain_over_singles(size, group, scenario)

    def over_plain(scenario: Scenario) -> Measure:
        form = str(scenario.axes["form"])
        return lambda size: matrix.gain_over_set(size, group, scenario, two, form)

    yield _finding("plain-fails", group, _each_size(matrix, over_singles(two), "below"))
    beyond = f"beats the target adapter alone at {_above(matrix, over_singles(three))} sizes"
    differences = _each_size(matrix, over_plain(three), "above")
    yield _finding("target-rescues", group, differences, beyond=beyond)
    for template, called in subject.shared.items():
        scenario = matrix.scenario(template, 2)
        raised = _above(matrix, over_plain(scenario))
        yield _finding(
            "succeeds",
            group,
            _each_size(matrix, over_singles(scenario), "above"),
            code=f"{template}-succeeds",
            called=called,
            raised=f"more than the plain 2-combination at {raised} sizes",
        )


def _both_fail(matrix: Matrix, group: str) -> Claim:
    """Uniform and arrow, each for itself, asked at once and step by step."""
    plain = matrix.scenario("plain", 2)
    forms = {"question": "at once", "steps": "step by step"}
    tests = [
        _difference(found, f"{size}, {method}, {forms[form]}", "below", matrix.margin)
        for method, form, size in product(("uniform", "arrow"), forms, matrix.sizes)
        if (found := matrix.gain_over_singles(size, group, plain, (method,), form))
    ]
    return _finding("both-fail", group, tests)


def _familiarity(matrix: Matrix, most: str, least: str, template: str) -> Claim:
    """Unpaired difference of two name sets, Newcombe's interval from two of Wilson's."""
    scenario = matrix.scenario(template, 2)
    names, form = system_names(scenario), str(scenario.axes["form"])
    tests = []
    for size in matrix.sizes:
        one, other = (share(matrix.results(size, g, scenario), names, form) for g in (most, least))
        value, low, high = newcombe(one[0], one[1], other[0], other[1])
        n = one[2] + other[2]
        tests.append(ClaimTest(size, value, low, high, n, "above", matrix.margin))
    return _finding("familiarity-helps", f"{most} - {least}", tests, template=template)


def newcombe(p1: float, ci1: Interval, p2: float, ci2: Interval) -> tuple[float, float, float]:
    """p1 - p2 of independent samples with Newcombe's hybrid score interval (1998, method 10)."""
    low = p1 - p2 - math.hypot(p1 - ci1[0], ci2[1] - p2)
    high = p1 - p2 + math.hypot(ci1[1] - p1, p2 - ci2[0])
    return p1 - p2, low, high


def _each_size(matrix: Matrix, measure: Measure, side: Side) -> tuple[ClaimTest, ...]:
    found = ((size, measure(size)) for size in matrix.sizes)
    return tuple(_difference(g, size, side, matrix.margin) for size, g in found if g is not None)


def _above(matrix: Matrix, measure: Measure) -> str:
    """The number of sizes at which the gain lies above the margin, as "2 of 3"."""
    found = [measure(size) for size in matrix.sizes]
    above = sum(g is not None and g.adjusted_ci95[0] > matrix.margin for g in found)
    return f"{above} of {len(found)}"


def _difference(found: Gain, where: str, side: Side, margin: float) -> ClaimTest:
    low, high = found.adjusted_ci95
    names = (found.system.rpartition(":")[2], found.against.rpartition(":")[2])
    note = " against ".join(names)
    return ClaimTest(where, found.difference, low, high, found.n, side, margin, note)
