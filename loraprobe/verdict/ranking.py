"""The options that were measured, and the best of them.

An option is one way to get answers in one form of the question: the base, one adapter, a merge, a
router, the adapters switched by task (which are no single model), or a chain. The best measured
score wins. A simpler option wins a tie (`tied`), in the order of SIMPLICITY and the plain question
before worked steps.

A chain takes several calls, the others take one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loraprobe.records import BASELINES, FORMS, Comparison, Gain, Interval
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.evidence import Evidence

SIMPLICITY = ("base", "adapter", "merge", "router", "switch", "chain")
SWITCH = "switch-adapters"  # the name of the option of that kind
NOISE = 2.0  # ties: the largest difference that counts as noise where it is not shown to be real


@dataclass(frozen=True)
class Option:
    """One option with its score, more is better, and the score's interval.

    Of several tasks both are means over the tasks.
    """

    system: str
    kind: str
    part: str
    score: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.kind == "chain":
            return "A chain, asked hop after hop"
        who = {"base": "the base", "switch": "each task's own adapter"}.get(self.kind, self.system)
        return f"{who}, {self.form}"

    @property
    def form(self) -> str:
        """The form of the question in words."""
        return fmt.PART[self.part]

    @property
    def shown(self) -> float:
        """The score as it is printed: a loss without its sign."""
        return abs(self.score)

    @property
    def effort(self) -> tuple[int, int]:
        """How much the option asks of its user; less is simpler."""
        return SIMPLICITY.index(self.kind), FORMS.index(self.part)


@dataclass(frozen=True)
class Difference:
    """How much better one option is than another, with an interval."""

    value: float
    low: float
    high: float


def option(evidence: Evidence, system: str, part: str) -> Option | None:
    """A system in one form; None unless it was scored on every task."""
    tasks = tuple(row.task for row in evidence.scores(system, part))
    found = evidence.macro(system, part)
    if found is None or tasks != evidence.task_names:
        return None
    return Option(system, str(evidence.kind(system)), part, *found)


def options(evidence: Evidence, kinds: Iterable[str]) -> list[Option]:
    """Every system of these kinds, in both forms."""
    return [
        one
        for name in evidence.systems(kinds)
        for part in FORMS
        if (one := option(evidence, name, part)) is not None
    ]


def alone(evidence: Evidence) -> list[Option]:
    """The base and every single adapter, in both forms.

    Of several tasks only those that are about as good on every task as the best of them there, and
    the adapters switched by task if they are not all the same.
    """
    found = options(evidence, BASELINES)
    if not evidence.several:
        return found
    apart = [evidence.on(task) for task in evidence.task_names]
    chosen = (best_option(here, alone(here)) for here in apart)
    members = [one for one in chosen if one is not None]
    if len(members) < len(apart):
        return found

    def suffices(one: Option) -> bool:
        scores = [here.mean(one.system, one.part) for here in apart]
        pairs = zip(members, scores, strict=True)
        return all(s is not None and best.score - s <= evidence.tie for best, s in pairs)

    suffice = [one for one in found if suffices(one)]
    if len({evidence.same_as(one.system) for one in members}) < 2:
        return suffice
    return [*suffice, _switched(members)]


def _switched(members: Sequence[Option]) -> Option:
    """Each task answered by its own member."""
    score, low, high = (
        sum(figures) / len(members)
        for figures in zip(*((one.score, one.low, one.high) for one in members), strict=True)
    )
    part = min((one.part for one in members), key=FORMS.index)
    return Option(SWITCH, "switch", part, score, low, high)


def best_option(evidence: Evidence, options: Iterable[Option]) -> Option | None:
    """The best measured option, or the simplest that ties with it; None without options."""
    ordered = sorted(options, key=lambda one: (one.effort, -one.score, one.system))
    if not ordered:
        return None
    top = max(ordered, key=lambda one: round(one.score, 9))
    return next(
        one for one in ordered if one is top or tied(difference(evidence, top, one), evidence.tie)
    )


def tied(better: Difference, tie: float) -> bool:
    """Whether an option is as good as a better one, so that its simplicity counts.

    It is shown to score at most `tie` less, or it is not shown to score less and the measured
    difference is at most NOISE ties.
    """
    return (better.value <= NOISE * tie and better.low <= 0) or better.high <= tie


def not_told_apart(evidence: Evidence, chosen: Option, options: Iterable[Option]) -> list[Option]:
    """The options of other systems that scored more and are not shown to be better, best first."""
    found = [
        one
        for one in options
        if one.system != chosen.system
        and round(one.score - chosen.score, 9) > 0
        and difference(evidence, one, chosen).low <= 0
    ]
    return sorted(found, key=lambda one: (-one.score, one.effort, one.system))


def difference(
    evidence: Evidence, one: Option, other: Option, adjusted: bool = False
) -> Difference:
    """How much better `one` is than `other`.

    Paired over the items where a gain or a comparison holds the two; else from both intervals, as
    if the scores were independent. adjusted: with the interval of the look that covers the choice
    of the best, which a decision takes.
    """
    if (found := _paired(evidence, one, other, adjusted)) is not None:
        return found
    if (back := _paired(evidence, other, one, adjusted)) is not None:
        return Difference(-back.value, -back.high, -back.low)
    value = one.score - other.score
    below = math.hypot(one.score - one.low, other.high - other.score)
    above = math.hypot(one.high - one.score, other.score - other.low)
    return Difference(value, value - below, value + above)


def _paired(evidence: Evidence, one: Option, other: Option, adjusted: bool) -> Difference | None:
    """The paired difference of two options, from a gain or a comparison; None if none has it."""
    pair: Gain | Comparison | None = next(
        (
            gain
            for gain in evidence.gains
            if (gain.system, gain.part, gain.against, gain.against_part)
            == (one.system, one.part, other.system, other.part)
            and (gain.task is None or not evidence.several)
        ),
        None,
    )
    pair = pair or compared(evidence, one.system, other.system, one.part, other.part)
    if pair is None:
        return None
    ends = (pair.adjusted_ci95 if adjusted else None) or pair.ci95
    return Difference(pair.difference, *ends)


def compared(
    evidence: Evidence, system: str, against: str, part: str, against_part: str | None = None
) -> Comparison | None:
    """The paired difference of two systems over all tasks, in the same form unless `against_part`.

    None if one lacks it.
    """
    wanted = system, part, against, against_part or part
    rows = [
        row
        for row in evidence.comparisons
        if (row.system, row.part, row.against, row.against_part or row.part) == wanted
    ]
    return pool(rows, evidence.task_names)


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
