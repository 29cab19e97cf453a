"""What a verdict may look at: records of the stages before it, and the thresholds of the user.

`Candidate` gathers all that decides on one composition. A control is beaten if the interval of the
difference lies above half the margin, and as good if it lies below. One threshold serves both, so
that more items never turn one into the other. A control that was not scored is not beaten.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from loraprobe.defaults import (
    COMPRESSION_LIMIT,
    FEWEST_ITEMS,
    KNOWN,
    MARGIN,
    MOST_ITEMS,
    RETENTION,
    UNKNOWN,
)
from loraprobe.formatting import gained
from loraprobe.records import (
    BASELINES,
    FORMS,
    Compatibility,
    Estimate,
    EvaluationRecords,
    EvidenceLevel,
    Gain,
    Measurement,
    Score,
    Standing,
    averaged,
    pooled,
)

FORM = {"question": "on the question", "steps": "step by step"}  # in words
COMPOSITIONS = ("merge", "router")  # what the decision is about
GUESSING = "guessing"  # the row of coverage that says what guessing would score
SAME = 1e-6  # two updates are equal if cosine and ratio of norms differ from 1 by no more
STEP = 0.01  # between two margins that are named
WEAKEST_FIRST: tuple[Standing, ...] = ("unlikely", "open", "likely")


@dataclass(frozen=True)
class TaskKind:
    """What kind of task is asked: how many task files, the most hops of an item, how answers are
    judged."""

    tasks: int
    hops: int
    metric: str

    def __str__(self) -> str:
        tasks = "one task" if self.tasks == 1 else f"{self.tasks} tasks"
        hops = f"of {self.hops} hops" if self.hops else "without hops"
        return f"{tasks} {hops}, {self.metric.replace('_', ' ')}"


@dataclass(frozen=True)
class LibraryChoice:
    """Out of what the compositions were chosen, on items that serve nothing else.

    `adapters` were asked alone, `sets` of them compared, and `proved` of these composed and asked
    up to `others` items. `passes` are numbers of systems with the numbers of questions that they
    were asked together; 0 for a pass over worked answers, which are only read.
    """

    adapters: int
    sets: int
    proved: int
    passes: tuple[tuple[int, int], ...]
    others: int


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
        above = (math.floor(self.high / STEP + 1e-9) + 1) * STEP
        below = (math.ceil(self.low / STEP - 1e-9) - 1) * STEP
        told = []
        if above < 1:
            told.append(f"{above:.2f} or more (it is not reached)")
        if below >= 0:
            told.append(f"{below:.2f} or less (it is reached)")
        return f"these decide {self.option} {' and '.join(told)}" if told else ""

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
    adapter is shown to differ from the base.
    """

    system: str
    kind: str
    part: str
    against: str
    against_part: str
    gain: Criterion
    controls: Mapping[str, Criterion] = field(default_factory=dict)
    kept: Mapping[str, Criterion | None] = field(default_factory=dict)
    compression_error: float | None = None
    checked: Criterion | None = None

    @property
    def confirmed(self) -> Standing:
        """What the metric allows that the gold answers need: it has to show the gain too."""
        return "likely" if self.checked is None or self.checked.outcome == "likely" else "open"

    @property
    def retains(self) -> Standing:
        """What the retentions alone say: likely if there are none."""
        shares = self.kept.values()
        if any(share is not None and share.outcome == "unlikely" for share in shares):
            return "unlikely"
        enough = all(share is not None and share.low >= share.threshold for share in shares)
        return "likely" if enough else "open"

    @property
    def beats_controls(self) -> Standing:
        """What the controls alone say: open if there are none."""
        return weakest(control.outcome for control in self.controls.values())

    @property
    def enough(self) -> Standing:
        """What the number of clusters allows: with too few of them no gain is `likely`."""
        return "likely" if self.gain.clusters >= FEWEST_ITEMS else "open"

    @property
    def outcome(self) -> Standing:
        """The weakest of gain, controls, retention, number of items and metric."""
        others = (self.beats_controls, self.retains, self.enough, self.confirmed)
        return weakest((self.gain.outcome, *others))

    def binds(self, said: Standing) -> bool:
        """Whether what one criterion says, and not the gain, makes the outcome."""
        return self.outcome == said != self.gain.outcome

    @property
    def lossy(self) -> bool:
        """Whether compression lost so much of the delta that the method itself was not tested."""
        return (self.compression_error or 0.0) > COMPRESSION_LIMIT


def weakest(said: Iterable[Standing]) -> Standing:
    """The weakest of what several criteria say; open if there are none."""
    return min(said, key=WEAKEST_FIRST.index, default="open")


@dataclass(frozen=True)
class Evidence:
    """All that is known about one set of adapters when the verdict is asked for.

    `measured` has what the base model answered, `level` is the strongest evidence that was
    gathered, `tasks` the number of task files, `margin` the gain that matters, `retention` the
    share of a specialist's gain that one model has to keep on every one of several tasks. `prior`
    is the share of successes expected where the case comes from, None for the calibration's own;
    `balanced` says that norms were made equal before composing. `hidden_size` is that of the base
    that was asked, infinite where its config does not tell it. `max_new_tokens` is None for the
    default limits of plain and worked answers. `choice` tells out of what library these adapters
    were chosen, None where they were given.
    """

    measured: EvaluationRecords = field(default_factory=EvaluationRecords)
    compatibility: Compatibility = field(default_factory=Compatibility)
    diagnostics: tuple[Measurement, ...] = ()
    tasks: int = 0
    level: EvidenceLevel = "weights"
    margin: float = MARGIN
    retention: float = RETENTION
    prior: float | None = None
    balanced: bool = False
    hidden_size: float | None = None
    max_new_tokens: int | None = None
    choice: LibraryChoice | None = None

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks that were scored, sorted."""
        return tuple(sorted({score.task for score in self.measured.scores}))

    @property
    def several(self) -> bool:
        """Whether the question is if one model keeps several skills."""
        return max(self.tasks, len(self.task_names)) > 1

    @property
    def rests_on(self) -> EvidenceLevel:
        """The level, which is at most `base` unless a merge or a router was scored."""
        if self.level in ("pilot", "evaluation") and not self.systems(COMPOSITIONS):
            return "base"
        return self.level

    def systems(self, kinds: Iterable[str], part: str | None = None) -> tuple[str, ...]:
        """Names of the scored systems of these kinds, sorted."""
        wanted = set(kinds)
        rows = [s for s in self.measured.scores if s.kind in wanted and part in (None, s.part)]
        return tuple(sorted({row.system for row in rows}))

    def kind(self, system: str) -> str:
        """What kind of system a name is; "" if it was not scored."""
        return next((s.kind for s in self.measured.scores if s.system == system), "")

    def scores(self, system: str, part: str) -> tuple[Score, ...]:
        """One system's scores on one part, a row a task, sorted by task."""
        rows = (s for s in self.measured.scores if s.system == system and s.part == part)
        return tuple(sorted(rows, key=lambda score: score.task))

    def estimate(self, system: str, part: str) -> Estimate | None:
        """The mean over tasks of a system's scores on one part; None without any."""
        rows = self.scores(system, part)
        return averaged([row.estimate for row in rows]) if rows else None

    def difference(
        self, system: str, part: str, against: str, against_part: str, *, adjusted: bool
    ) -> Estimate | None:
        """The paired difference of two systems, the mean over all tasks; None if one lacks it.

        adjusted: with the interval of the round that covers the choice of the best.
        """
        wanted = system, part, against, against_part
        rows = {
            row.task: row.adjusted if adjusted else row.estimate
            for row in self.measured.comparisons
            if (row.system, row.part, row.against, row.against_part or row.part) == wanted
        }
        if not rows or tuple(sorted(rows)) != self.task_names:
            return None
        return pooled([rows[task] for task in self.task_names])

    def gain(self, system: str, part: str) -> Gain | None:
        """The gain of a composition, of several tasks that of the mean; None if it is not known."""
        for row in self.measured.gains:
            if (row.system, row.part) == (system, part) and not (row.task and self.several):
                return row
        return None

    def candidate(self, system: str, part: str) -> Candidate | None:
        """A composition with all that decides on it; None unless its gain is known."""
        own = self.gain(system, part)
        if own is None:
            return None
        scores, gain = self.scores(system, part), gain_criterion(own, self.margin)
        kept: dict[str, Criterion | None] = {}
        for row in scores if self.several else ():
            kept[row.task] = None
            if row.kept is not None:
                kept[row.task] = criterion(row.kept, self.retention, "--retention", like=gain)
        controls = {}
        for name in self.systems(("control",), part):
            pair = self.difference(system, part, name, part, adjusted=True)
            if pair is not None:
                controls[name] = criterion(pair, self.margin / 2, like=gain)
        errors = [row.compression_error for row in scores if row.compression_error is not None]
        return Candidate(
            system,
            self.kind(system),
            part,
            own.against,
            own.against_part,
            gain,
            controls,
            kept,
            max(errors, default=None),
            None if own.rejudged is None else criterion(own.rejudged, self.margin, like=gain),
        )

    def on(self, task: str) -> Evidence:
        """The scores of one task alone."""
        rows = tuple(score for score in self.measured.scores if score.task == task)
        measured = replace(self.measured, scores=rows, comparisons=(), gains=())
        return replace(self, tasks=1, measured=measured)

    def same_as(self, adapter: str) -> str:
        """One name for all adapters whose updates are equal, the first by name."""
        return min((names for names in self.duplicates if adapter in names), default=(adapter,))[0]

    @property
    def duplicates(self) -> tuple[tuple[str, ...], ...]:
        """Pairs of adapters whose updates are equal, sorted."""
        figures = {
            (row.name, frozenset(row.adapters)): row.value
            for row in self.diagnostics
            if row.module is None and row.value is not None
        }
        return tuple(
            sorted(
                tuple(sorted(names))
                for (name, names), value in figures.items()
                if name == "cosine"
                and 1 - value <= SAME
                and abs(1 - figures.get(("norm_ratio", names), math.inf)) <= SAME
            )
        )

    @property
    def guessing(self) -> float:
        """What guessing would score, the mean over tasks; 0 if it was not computed."""
        rows = [row.value for row in self.measured.coverage if row.name == GUESSING]
        known = [value for value in rows if value is not None]
        return sum(known) / len(known) if known else 0.0

    @property
    def tie(self) -> float:
        """The largest difference between two systems that is worth no effort."""
        return min(self.margin, MARGIN)

    @property
    def baseline(self) -> float | None:
        """The best score of the base or a single adapter, on the form that suits it better.

        The mean over tasks; None where none of them was scored on every task.
        """
        systems = [(name, part) for name in self.systems(BASELINES) for part in FORMS]
        whole = [one for one in systems if len(self.scores(*one)) == len(self.task_names)]
        found = [self.estimate(*one) for one in whole]
        return max((one.value for one in found if one is not None), default=None)

    @property
    def kind_of_task(self) -> TaskKind:
        """How many tasks were scored, the most hops of one, and how the question is judged."""
        scores = self.measured.scores
        hops = [int(s.part.removeprefix("hop")) for s in scores if s.part.startswith("hop")]
        metrics = sorted({s.metric for s in scores if s.part == "question"})
        return TaskKind(len(self.task_names), max(hops, default=0), "+".join(metrics))

    @property
    def hops(self) -> Mapping[int, Mapping[str, Score]]:
        """hop -> "base" or an adapter's name -> its score, for one task without losses.

        A hop is known to a system, or unknown (`is_known`, `is_unknown`); between the two nothing
        is claimed. Both thresholds are conventions of this tool.
        """
        found: dict[int, dict[str, Score]] = {}
        for score in () if self.several or self.losses else self.measured.scores:
            if score.kind in BASELINES and score.part.startswith("hop"):
                name = "base" if score.kind == "base" else score.system
                found.setdefault(int(score.part.removeprefix("hop")), {})[name] = score
        return dict(sorted(found.items()))

    @property
    def losses(self) -> bool:
        """Whether scores are losses, for which there is neither known nor ceiling."""
        return any(score.is_loss for score in self.measured.scores)


def gain_criterion(gain: Gain, margin: float) -> Criterion:
    """A gain against the margin, with the interval that covers the choice of the best."""
    own = gain.adjusted
    return Criterion(own.value, own.low, own.high, own.n, own.clusters, margin, gain.n_needed)


def by_change(system: str) -> tuple[int, str]:
    """A key of compositions that measured the same: the one first that changes the base less.

    The average of the deltas is the smallest change of all merges, and their sum the largest. A
    screen names compositions as in `sum(a, b)`.
    """
    return {"uniform": 0, "sum": 2}.get(system.partition("(")[0], 1), system


def is_known(score: Score) -> bool:
    """Whether a hop is known: the lower bound of its accuracy is at least KNOWN."""
    return score.ci95[0] >= KNOWN


def is_unknown(score: Score) -> bool:
    """Whether a hop is unknown: `held_at_most` lies below UNKNOWN."""
    return held_at_most(score) < UNKNOWN


def held_at_most(score: Score) -> float:
    """The upper bound of the share of replies in which the answer stands, in whatever words."""
    return (score.contains_ci95 or score.ci95)[1]
