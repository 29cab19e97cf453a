"""What a verdict may look at: records of the stages before it, and the thresholds of the user.

A `Criterion` is a figure against its threshold, a `Candidate` a composition with all criteria that
decide on it. A control is beaten if the interval of the difference lies above half the margin, and
as good if it lies below. One threshold serves both, so that more items never turn one into the
other. A control that was not scored is not beaten.

A `ScoredSystem` is anything that was asked, with its score. `Evidence` compares these, and makes a
`Candidate` of each composition.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from loraprobe.defaults import (
    COMPRESSION_LIMIT,
    FEWEST_ITEMS,
    KNOWN,
    MARGIN,
    MARGIN_STEP,
    MOST_ITEMS,
    PILOT_ITEMS,
    RETENTION,
    SAME_UPDATE,
    TIES_OF_NOISE,
    UNKNOWN,
)
from loraprobe.formatting import gained
from loraprobe.records import (
    BASELINES,
    COMPOSITIONS,
    FORMS,
    QUESTION,
    STEPS,
    Action,
    Compatibility,
    Estimate,
    EvaluationRecords,
    EvidenceLevel,
    Gain,
    ItemPart,
    Measurement,
    Missing,
    Score,
    TestResult,
    averaged,
    by_change,
    display_name,
    effort,
    kinds,
    pooled,
    references,
)

WEAKEST_FIRST: tuple[TestResult, ...] = ("unlikely", "inconclusive", "likely")


def weakest(said: Iterable[TestResult]) -> TestResult:
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
        return gained(self.value, (self.low, self.high), threshold=self.threshold)

    @property
    def unsigned(self) -> str:
        """A share with its interval, without a sign: 0.81 [0.62, 0.95]."""
        return str(self).removeprefix("+")

    @property
    def outcome(self) -> TestResult:
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
    kind: str
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
    def confirmed(self) -> TestResult:
        """What the metric allows that the gold answers need: it has to show the gain too."""
        return (
            "likely" if self.checked is None or self.checked.outcome == "likely" else "inconclusive"
        )

    @property
    def retains(self) -> TestResult:
        """What the retentions alone say: likely if there are none."""
        shares = self.kept.values()
        if any(share is not None and share.outcome == "unlikely" for share in shares):
            return "unlikely"
        enough = all(share is not None and share.low >= share.threshold for share in shares)
        return "likely" if enough else "inconclusive"

    @property
    def beats_controls(self) -> TestResult:
        """What the controls alone say: inconclusive if there are none."""
        return weakest(control.outcome for control in self.controls.values())

    @property
    def enough(self) -> TestResult:
        """What the number of clusters allows: with too few of them no gain is `likely`."""
        return "likely" if self.gain.clusters >= FEWEST_ITEMS else "inconclusive"

    @property
    def safe(self) -> TestResult:
        """What the guards alone say: likely if there are none, open where one was not asked."""
        said = (one.outcome if one is not None else "inconclusive" for one in self.guards.values())
        return weakest(("likely", *said))

    @property
    def ranking_outcome(self) -> TestResult:
        """What compositions are ranked by: the weakest of gain, retention, number of items, metric,
        and controls that were asked.

        Those of a composition are asked when it leads. Unlikely where a guard is lost. What is open
        of guards does not count, so that it never makes another composition the leading one: one
        attempt at a time may keep them by chance.
        """
        if self.safe == "unlikely":
            return "unlikely"
        controls = [self.beats_controls] if self.controls else []
        others = (self.retains, self.enough, self.confirmed, *controls)
        return weakest((self.gain.outcome, *others))

    @property
    def outcome(self) -> TestResult:
        """The weakest of all criteria, also of controls and guards that were not asked."""
        return weakest((self.ranking_outcome, self.beats_controls, self.safe))

    def is_binding(self, said: TestResult) -> bool:
        """Whether what one criterion says, and not the gain, makes the outcome."""
        return self.outcome == said != self.gain.outcome

    @property
    def missing(self) -> Missing | None:
        """What keeps the outcome open beside the gain and could be asked; None if nothing does."""
        if self.is_binding(self.confirmed):
            return "metric"
        if not self.controls and self.retains == "likely" and self.is_binding(self.beats_controls):
            return "controls"
        if self.is_binding(self.enough):
            return "items"
        return "guard-items" if self.is_binding(self.safe) and self.safe == "inconclusive" else None

    @property
    def lossy(self) -> bool:
        """Whether compression lost so much of the delta that the method itself was not tested."""
        return (self.compression_error or 0.0) > COMPRESSION_LIMIT


def gain_criterion(gain: Gain, margin: float) -> Criterion:
    """A gain against the margin, with the interval that covers the choice of the best."""
    low, high = gain.adjusted_ci95
    clusters = gain.clusters or gain.n
    return Criterion(gain.difference, low, high, gain.n, clusters, margin, gain.n_needed)


# ---- evidence ------------------------------------------------------------------------------------

FORM = {"question": "on the question", "steps": "step by step"}  # in words
GUESSING = "guessing"  # the row of coverage that says what guessing would score
SWITCH = "switch-adapters"  # the action; also the name of the system of that kind


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
class ScoredSystem:
    """A system in one form of the question with its score, more is better.

    Of several tasks it is the mean. The adapters switched by task are one such system too. Its name
    says the form only where `both` forms were asked.
    """

    system: str
    kind: str
    part: ItemPart
    score: Estimate
    both: bool = False

    def __str__(self) -> str:
        if self.kind == "chain":
            return "A chain asked hop after hop"
        kind = kinds()[self.kind]
        own = kind.role != "reference" or kind.name == self.system
        return ((own and kind.words) or display_name(self.system)) + self.in_form

    @property
    def in_form(self) -> str:
        """The form of the question after a name; "" where only one was asked."""
        return f" {self.form}" if self.both else ""

    @property
    def form(self) -> str:
        """The form of the question in words."""
        return FORM[self.part]

    @property
    def shown(self) -> float:
        """The score as it is printed: a loss without its sign."""
        return abs(self.score.value)

    @property
    def effort(self) -> tuple[int, int, bool]:
        """How much the system asks of its user; less is simpler."""
        return effort(self.system, self.kind, self.part)

    @property
    def action(self) -> Action:
        """The action that uses it. None uses a control."""
        if self.kind in COMPOSITIONS and self.part == STEPS:
            return Action("step-by-step")
        kind = kinds()[self.kind].action
        assert kind is not None
        return Action(kind, self.system if self.kind == "adapter" else "")


@dataclass(frozen=True)
class Exclusion:
    """Why a system cannot be used: the code of a reason, and the words in its sentence.

    Two words of the sentence are not among them, because the verdict gives them: `other` is the
    name of the system, and `more` says by how much it scores more than the system that is advised.
    """

    code: str
    words: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """All that is known about one set of adapters when the verdict is asked for.

    `measured` has what the base model answered, `level` is the strongest evidence that was
    gathered, `tasks` the number of task files, `guard_names` what must not get worse, `margin` is
    the gain that matters, `retention` the share of a specialist's gain that one model has to keep
    on every one of several tasks. `balanced` says that norms were made equal before composing,
    `space` is the one that was asked for, "" for each method's own.
    `hidden_size` is that of the base that was asked, None where its config does not tell it.
    `max_new_tokens` is None for the default limits of plain and worked answers. `excluded` has the
    systems that cannot be used: these change what is advised and no decision. `rank_given` says
    that --rank is a number. Of the tasks' `items` so many as are `repeated` ask a question again.
    """

    measured: EvaluationRecords = field(default_factory=EvaluationRecords)
    compatibility: Compatibility = field(default_factory=Compatibility)
    diagnostics: tuple[Measurement, ...] = ()
    tasks: int = 0
    guard_names: tuple[str, ...] = ()
    level: EvidenceLevel = "weights"
    margin: float = MARGIN
    retention: float = RETENTION
    balanced: bool = False
    space: str = ""
    hidden_size: int | None = None
    max_new_tokens: int | None = None
    excluded: Mapping[str, Exclusion] = field(default_factory=dict)
    rank_given: bool = False
    items: int = 0
    repeated: int = 0

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks that were scored, sorted."""
        return tuple(sorted({score.task for score in self.measured.scores}))

    @property
    def several(self) -> bool:
        """Whether the question is if one model keeps several skills."""
        return max(self.tasks, len(self.task_names)) > 1

    @property
    def few_items(self) -> bool:
        """Whether compositions were asked no more items of a task than a first round asks."""
        return all(s.n <= PILOT_ITEMS for s in self.measured.scores if s.kind in COMPOSITIONS)

    @property
    def rests_on(self) -> EvidenceLevel:
        """The level, which is at most `base` unless a merge or a router was scored."""
        if self.level in ("pilot", "evaluation") and not self.systems(COMPOSITIONS):
            return "base"
        return self.level

    def systems(self, kinds: Iterable[str], part: ItemPart | None = None) -> tuple[str, ...]:
        """Names of the scored systems of these kinds, sorted."""
        wanted = set(kinds)
        rows = [s for s in self.measured.scores if s.kind in wanted and part in (None, s.part)]
        return tuple(sorted({row.system for row in rows}))

    def scores(self, system: str, part: ItemPart) -> tuple[Score, ...]:
        """One system's scores on one part, a row a task, sorted by task."""
        rows = (s for s in self.measured.scores if s.system == system and s.part == part)
        return tuple(sorted(rows, key=lambda score: score.task))

    def scored(self, names: Iterable[str], parts: Iterable[ItemPart] = FORMS) -> list[ScoredSystem]:
        """Those of these systems that were scored on every task, in each of the forms."""
        scores = [(name, part, self.scores(name, part)) for name in names for part in parts]
        both = any(row.part == STEPS for row in self.measured.scores)
        return [
            ScoredSystem(name, rows[0].kind, part, averaged([row.estimate for row in rows]), both)
            for name, part, rows in scores
            if rows and tuple(row.task for row in rows) == self.task_names
        ]

    def scored_candidates(self, composed: Iterable[Candidate]) -> list[ScoredSystem]:
        """These compositions, each in its form, where they were scored on every task."""
        return [s for c in composed for s in self.scored([c.system], [c.part])]

    def scored_alone(self) -> list[ScoredSystem]:
        """The base and every single adapter, in both forms.

        Of several tasks only those that are about as good on every task as the best of them there,
        and the adapters switched by task if they are not all the same.
        """
        baselines = self.scored(self.systems(BASELINES))
        if not self.several:
            return baselines
        apart = [self.on(task) for task in self.task_names]
        members = [*self.best_alone().values()]
        if len(members) < len(apart):
            return baselines

        def suffices(baseline: ScoredSystem) -> bool:
            scores = [here.scored([baseline.system], [baseline.part]) for here in apart]
            pairs = zip(members, scores, strict=True)
            return all(s and best.score.value - s[0].score.value <= self.tie for best, s in pairs)

        suffice = [baseline for baseline in baselines if suffices(baseline)]
        if len({self.same_as(baseline.system) for baseline in members}) < 2:
            return suffice or baselines
        part = min((baseline.part for baseline in members), key=FORMS.index)
        switched = averaged([baseline.score for baseline in members])
        return [*suffice, ScoredSystem(SWITCH, "switch", part, switched, members[0].both)]

    @property
    def switched(self) -> set[str]:
        """The adapters that answer a task each where adapters are switched by task."""
        best = self.usable.best_alone().values()
        return {one.system for one in best if one.kind == "adapter"}

    def scored_references(self) -> list[ScoredSystem]:
        """The systems of extensions that may be advised, in both forms."""
        names = {name: kind.name for name, kind in references().items()}
        rows = self.measured.scores
        return self.scored(sorted({s.system for s in rows if names.get(s.kind) == s.system}))

    def best_alone(self) -> dict[str, ScoredSystem]:
        """The best of base and single adapters on each task, by the task's name."""
        apart = {task: self.on(task) for task in self.task_names}
        chosen = {task: here.leader(here.scored_alone()) for task, here in apart.items()}
        return {task: one for task, one in chosen.items() if one is not None}

    def leader(self, systems: Iterable[ScoredSystem]) -> ScoredSystem | None:
        """The best measured system, or the simplest that ties with it; None without systems.

        A router, which no program loads, has to be shown to be better than the best merge.
        """
        by_score = ranked(systems)
        if not by_score:
            return None
        top, simplest_first = by_score[0], sorted(by_score, key=lambda system: system.effort)
        tie, most = self.tie, TIES_OF_NOISE * self.tie
        best = next(
            s for s in simplest_first if s is top or tied(self.difference(top, s), tie, most)
        )
        if not kinds()[best.kind].loadable:
            rival = self.leader(one for one in by_score if kinds()[one.kind].loadable)
            if (
                rival is not None
                and rival.kind == "merge"
                and self.difference(best, rival).low <= 0
            ):
                return rival
        return best

    def leading(self, kind: str, names: Collection[str] | None = None) -> str | None:
        """The name of the leader of the scored systems of a kind, or of some of these."""
        systems = self.systems((kind,))
        some = systems if names is None else [name for name in systems if name in names]
        best = self.leader(self.scored(some))
        return None if best is None else best.system

    @property
    def usable(self) -> Evidence:
        """The scores of what keeps the guards and is not excluded.

        A chain needs all its adapters, and loses what the adapters of its hops lose.
        """
        out = set(self.excluded)
        if not out.isdisjoint(self.systems(("adapter",))):
            out.add("chain")
        out |= self.measured.unsafe
        rows = tuple(row for row in self.measured.scores if row.system not in out)
        return replace(self, measured=replace(self.measured, scores=rows)) if out else self

    def difference(
        self, system: ScoredSystem, other: ScoredSystem, *, adjusted: bool = False
    ) -> Estimate:
        """How much better a system is than the other one.

        Paired over the items where a gain or a comparison holds the two; else from both intervals,
        as if the scores were independent. adjusted: with the interval of the round that covers the
        choice of the best, which a decision takes.
        """
        paired = self._paired(system, other, adjusted)
        if paired is not None:
            return paired
        turned = self._paired(other, system, adjusted)
        return system.score - other.score if turned is None else -turned

    def _paired(self, system: ScoredSystem, other: ScoredSystem, adjusted: bool) -> Estimate | None:
        """The difference of two systems in a gain or in a comparison; None if none has it."""
        pair = system.system, system.part, other.system, other.part
        for gain in self.measured.gains:
            compared = gain.system, gain.part, gain.against, gain.against_part
            if compared == pair and (gain.task is None or not self.several):
                return gain.adjusted if adjusted else gain.estimate
        return self.compared(*pair, adjusted=adjusted)

    def compared(
        self, system: str, part: ItemPart, against: str, against_part: ItemPart, *, adjusted: bool
    ) -> Estimate | None:
        """The comparison of two systems, the mean over all tasks; None if one lacks it."""
        wanted = system, part, against, against_part
        rows = {
            row.task: row.adjusted if adjusted else row.estimate
            for row in self.measured.comparisons
            if (row.system, row.part, row.against, row.against_part or row.part) == wanted
        }
        if not rows or tuple(sorted(rows)) != self.task_names:
            return None
        return pooled([rows[task] for task in self.task_names])

    def gain(self, system: str, part: ItemPart) -> Gain | None:
        """The gain of a composition, of several tasks that of the mean; None if it is not known."""
        for row in self.measured.gains:
            if (row.system, row.part) == (system, part) and not (row.task and self.several):
                return row
        return None

    def candidate(self, system: str, part: ItemPart) -> Candidate | None:
        """A composition with all that decides on it; None unless its gain is known."""
        gain_row, scores = self.gain(system, part), self.scores(system, part)
        if gain_row is None or not scores:
            return None
        gain, checked = gain_criterion(gain_row, self.margin), None
        if gain_row.checked is not None and gain_row.checked_ci95 is not None:
            low, high = gain_row.checked_ci95
            checked = replace(gain, value=gain_row.checked, low=low, high=high, needed=None)
        kept: dict[str, Criterion | None] = {}
        for row in scores if self.several else ():
            kept[row.task] = None
            if row.kept is not None:
                kept[row.task] = criterion(row.kept, self.retention, "--retention", like=gain)
        controls, scored = {}, self.systems(("control",), part)
        for name in scored:
            pair = self.compared(system, part, name, part, adjusted=True)
            if pair is not None:
                controls[name] = criterion(pair, self.margin / 2, like=gain)
        if control_kinds(controls) < control_kinds(scored):  # these belong to another composition
            controls = {}
        lost = {row.task: row for row in self.measured.guards if row.system == system}
        guards = {
            name: criterion(lost[name].estimate, -lost[name].margin, "--guard-margin")
            if name in lost
            else None
            for name in self.guard_names
        }
        errors = [row.compression_error for row in scores if row.compression_error is not None]
        return Candidate(
            system,
            scores[0].kind,
            part,
            gain_row.against,
            gain_row.against_part,
            gain,
            controls,
            kept,
            guards=guards,
            compression_error=max(errors, default=None),
            checked=checked,
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
                and 1 - value <= SAME_UPDATE
                and abs(1 - figures.get(("norm_ratio", names), math.inf)) <= SAME_UPDATE
            )
        )

    @property
    def guessing(self) -> float:
        """What guessing would score, the mean over tasks; 0 if it was not computed."""
        rows = [row.value for row in self.measured.coverage if row.name == GUESSING]
        values = [value for value in rows if value is not None]
        return sum(values) / len(values) if values else 0.0

    @property
    def tie(self) -> float:
        """The largest difference between two systems that is worth no effort."""
        return min(self.margin, MARGIN)

    def at_ceiling(self, score: Estimate, gain: float) -> bool:
        """Whether a score is shown to leave no room for a gain. A loss always leaves some."""
        return not self.losses and score.low > 1 - gain

    @property
    def baseline(self) -> float | None:
        """The best score of the base or a single adapter, on the form that suits it better.

        The mean over tasks; None where none of them was scored on every task.
        """
        baselines = ranked(self.scored(self.systems(BASELINES)))
        return baselines[0].score.value if baselines else None

    @property
    def kind_of_task(self) -> TaskKind:
        """How many tasks were scored, the most hops of one, and how the question is judged."""
        scores = self.measured.scores
        hops = max((score.part.hop or 0 for score in scores), default=0)
        metrics = sorted({s.metric for s in scores if s.part == QUESTION})
        return TaskKind(len(self.task_names), hops, "+".join(metrics))

    @property
    def hops(self) -> Mapping[int, Mapping[str, Score]]:
        """hop -> "base" or an adapter's name -> its score, for one task without losses.

        A hop is known to a system, or unknown (`is_known`, `is_unknown`); between the two nothing
        is claimed. Both thresholds are conventions of this tool.
        """
        by_hop: dict[int, dict[str, Score]] = {}
        for score in () if self.several or self.losses else self.measured.scores:
            if score.kind in BASELINES and score.part.hop is not None:
                name = "base" if score.kind == "base" else score.system
                by_hop.setdefault(score.part.hop, {})[name] = score
        return dict(sorted(by_hop.items()))

    @property
    def losses(self) -> bool:
        """Whether scores are losses, for which there is neither known nor ceiling."""
        return any(score.is_loss for score in self.measured.scores)


def control_kinds(names: Iterable[str]) -> set[str]:
    """The kinds of controls, which their names begin with."""
    return {name.partition(":")[0] for name in names}


def ranked(systems: Iterable[ScoredSystem]) -> list[ScoredSystem]:
    """The systems by what they scored, the best first; of equal ones the simplest first.

    Simple is what stands first in `kinds`, then the plain question before worked steps, then the
    merge that changes the base less.
    """
    return sorted(systems, key=lambda s: (-round(s.score.value, 9), s.effort, by_change(s.system)))


def tied(better: Estimate, tie: float, most: float) -> bool:
    """Whether a system is as good as a better one, so that its simplicity counts.

    It is shown to score at most `tie` less, or it is not shown to score less and the measured
    difference is at most `most`.
    """
    return (better.value <= most + 1e-9 and better.low <= 0) or better.high <= tie


def is_known(score: Score) -> bool:
    """Whether a hop is known: the lower bound of its accuracy is at least KNOWN."""
    return score.ci95[0] >= KNOWN


def is_unknown(score: Score) -> bool:
    """Whether a hop is unknown: `held_at_most` lies below UNKNOWN."""
    return held_at_most(score) < UNKNOWN


def held_at_most(score: Score) -> float:
    """The upper bound of the share of replies in which the answer stands, in whatever words."""
    return (score.contains_ci95 or score.ci95)[1]
