"""The paper's qualitative claims (arXiv 2506.13479), each with the rule that decides it here.

"Succeeds" and "fails" are said of the gain of the best of uniform, sum and arrow over the best of
base and single adapters, which may answer in their better form: the interval covers the choice of
the best among compositions and baselines.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal

from loraprobe.defaults import ALPHA
from loraprobe.records import Gain, Interval
from loraprobe.sample_size import Z95, items_needed
from loraprobe_lab.experiments.matrix import ALL, Matrix, share, system_name, system_names
from loraprobe_lab.world import Scenario
from loraprobe_lab.worlds.known import table

CLAIMS, READINGS = (table("claims")[key] for key in ("claims", "readings"))
Outcome = Literal["yes", "no", "undecided"]
Side = Literal["above", "below"]
Standing = Literal["holds", "does not hold", "not decided"]
Measure = Callable[[str, float], Gain | None]  # of a size, at a level 1 - alpha


@dataclass(frozen=True)
class ClaimTest:
    """A difference with its 95 % interval; `side` is the claimed side of the margin.

    Claimed "above": the outcome is yes if the lower end lies above the margin, no if the upper end
    of `shared` lies below it. Claimed "below": the other way round. `shared` is the interval whose
    error all differences share of which a single "no" overturns the claim.
    """

    where: str
    value: float
    low: float
    high: float
    n: int
    side: Side
    margin: float
    shared: Interval
    note: str = ""

    @property
    def outcome(self) -> Outcome:
        above, below = self.low > self.margin, self.high < self.margin
        if above if self.side == "above" else below:
            return "yes"
        overturned = self.shared[1] < self.margin, self.shared[0] > self.margin
        return "no" if overturned[self.side == "below"] else "undecided"

    @property
    def needed(self) -> int | None:
        """The people that would decide an open difference, if this one is the true one."""
        if self.outcome != "undecided":
            return None
        se, distance = (self.high - self.low) / 2 / Z95, self.value - self.margin
        agrees = (distance > 0) == (self.side == "above")
        low, high = (self.low, self.high) if agrees else self.shared
        return items_needed(self.n, distance, se, (high - low) / 2 / se)


@dataclass(frozen=True)
class Claim:
    """A qualitative claim, and whether it held here. `where`: the questions it is about.

    overall: its differences over all sizes. tests: at each size, where there are several. It holds
    if every difference over all sizes says so and no size says the opposite; it does not hold if
    any difference says the opposite; else it is not decided. differs: what was seen where a
    difference says the opposite.
    """

    code: str
    claim: str
    where: str
    rule: str
    overall: tuple[ClaimTest, ...]
    tests: tuple[ClaimTest, ...] = ()
    differs: Mapping[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many sizes say yes, no, undecided."""
        found = Counter(test.outcome for test in self.tests)
        return {key: found.get(key, 0) for key in ("yes", "no", "undecided")}

    @property
    def standing(self) -> Standing:
        if any(test.outcome == "no" for test in (*self.overall, *self.tests)):
            return "does not hold"
        holds = self.overall and all(test.outcome == "yes" for test in self.overall)
        return "holds" if holds else "not decided"


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
    name: str,
    where: str,
    tests: Sequence[ClaimTest],
    code: str = "",
    differs: Mapping[str, str] | None = None,
    **words: str,
) -> Claim:
    """The claim of this name in `data/claims.json`; `words` fill its gaps."""
    row = CLAIMS[name]
    claim = row["claim"].format(**words)
    overall = tuple(test for test in tests if test.where.startswith(ALL))
    each = tuple(test for test in tests if test not in overall)
    return Claim(code or name, claim, where, row["rule"], overall, each, differs or {})


def _of_group(matrix: Matrix, group: str, subject: Subject) -> Iterator[Claim]:
    """The claims about one set of questions."""
    two, three = matrix.scenario("plain", 2), matrix.scenario("plain", 3)

    def over_singles(scenario: Scenario) -> Measure:
        return lambda size, alpha: matrix.gain_over_singles(size, group, scenario, alpha=alpha)

    def over_plain(size: str, alpha: float) -> Gain | None:
        return matrix.gain_over_set(size, group, three, two, "question", alpha)

    tests = _each_size(matrix, group, [two], over_singles(two), "below")
    yield _finding("plain-fails", group, tests, differs=_readings(matrix, group, two, tests))
    tests = _each_size(matrix, group, [three, two], over_plain, "above")
    differs = _readings(matrix, group, three, tests)
    yield _finding("target-rescues", group, tests, differs=differs)
    for template, called in subject.shared.items():
        if template in matrix.templates:
            scenario = matrix.scenario(template, 2)
            tests = _each_size(matrix, group, [scenario], over_singles(scenario), "above")
            yield _finding(
                "succeeds",
                group,
                tests,
                code=f"{template}-succeeds",
                differs=_readings(matrix, group, scenario, tests),
                called=called,
            )


def _both_fail(matrix: Matrix, group: str) -> Claim:
    """Uniform and arrow, each for itself, asked at once and step by step."""
    plain = matrix.scenario("plain", 2)
    forms = {"question": "at once", "steps": "step by step"}
    tests = list[ClaimTest]()
    for method, (form, called) in product(("uniform", "arrow"), forms.items()):

        def measure(size: str, alpha: float, of: str = method, form: str = form) -> Gain | None:
            return matrix.gain_over_singles(size, group, plain, (of,), form, alpha)

        found = _each_size(matrix, group, [plain], measure, "below", 4)
        tests += [replace(test, where=f"{test.where}, {method}, {called}") for test in found]
    return _finding("both-fail", group, tests, differs=_readings(matrix, group, plain, tests))


def _familiarity(matrix: Matrix, most: str, least: str, template: str) -> Claim:
    """Unpaired difference of two name sets, Newcombe's interval from two of Wilson's."""
    scenario = matrix.scenario(template, 2)
    names, form = system_names(scenario), str(scenario.axes["form"])

    def between(size: str, alpha: float) -> tuple[Any, ...]:
        one, other = (
            share(matrix.results(size, group, scenario), names, form, alpha)
            for group in (most, least)
        )
        note = f"{most} {one[0]:.2f}, {least} {other[0]:.2f}"
        return newcombe(one[0], one[1], other[0], other[1]), one[2] + other[2], note

    tests = []
    for size, alpha in _alphas(matrix):
        (value, low, high), n, note = between(size, ALPHA)
        shared = between(size, alpha)[0][1:]
        tests.append(ClaimTest(size, value, low, high, n, "above", matrix.margin, shared, note))
    differs = {test.where: test.note for test in tests if test.outcome == "no"}
    where = f"{most} - {least}"
    return _finding("familiarity-helps", where, tests, differs=differs, template=template)


def newcombe(p1: float, ci1: Interval, p2: float, ci2: Interval) -> tuple[float, float, float]:
    """p1 - p2 of independent samples with Newcombe's hybrid score interval (1998, method 10)."""
    low = p1 - p2 - math.hypot(p1 - ci1[0], ci2[1] - p2)
    high = p1 - p2 + math.hypot(ci1[1] - p1, p2 - ci2[0])
    return p1 - p2, low, high


def _alphas(matrix: Matrix, among: int = 1) -> Iterator[tuple[str, float]]:
    """All sizes together, then each of several, with the error of a "no" there.

    Sizes share the error. among: the differences at each place, which share it too.
    """
    several = matrix.sizes if len(matrix.sizes) > 1 else ()
    yield ALL, ALPHA / among
    yield from ((size, ALPHA / among / len(several)) for size in several)


def _each_size(
    matrix: Matrix,
    group: str,
    scenarios: Sequence[Scenario],
    measure: Measure,
    side: Side,
    among: int = 1,
) -> list[ClaimTest]:
    """The differences of `_alphas`, as far as they were measured. scenarios: what is compared."""
    tests = []
    for size, alpha in _alphas(matrix, among):
        found, shared = measure(size, ALPHA), measure(size, alpha)
        if found is not None and shared is not None:
            low, high = found.adjusted_ci95
            rows = matrix.results(size, group, *scenarios)
            scores = [
                f"{system.rpartition(':')[2]} {share(rows, [system], part)[0]:.2f}"
                for system, part in (
                    (found.system, found.part),
                    (found.against, found.against_part),
                )
            ]
            test = ClaimTest(
                size,
                found.difference,
                low,
                high,
                found.n,
                side,
                matrix.margin,
                shared.adjusted_ci95,
                " against ".join(scores),
            )
            tests.append(test)
    return tests


def _readings(
    matrix: Matrix, group: str, scenario: Scenario, tests: Sequence[ClaimTest]
) -> dict[str, str]:
    """What was seen where a difference overturns its claim: its scores, and that of the chain.

    The words are those of `data/claims.json`: a composition gains that was to fail; one adapter
    alone answers more than half, so that little is left to gain; the chain answers more than half,
    so that the hops are known and the composition loses them; or the hops are not known.
    """
    found = {}
    for test in tests:
        if test.outcome == "no":
            two = matrix.scenario(str(scenario.axes["template"]), 2)
            rows = matrix.results(test.where.partition(",")[0], group, two)
            chain = system_name(two, "chain")
            known = share(rows, [chain], str(scenario.axes["form"]))[0]
            alone = float(test.note.rpartition(" ")[2]) > 0.5
            reading = "alone" if alone else "lost" if known > 0.5 else "unknown"
            told = READINGS["gains" if test.side == "below" else reading]
            found[test.where] = f"{test.note}, chain {known:.2f}: {told}"
    return found
