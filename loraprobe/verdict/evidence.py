"""What a verdict may look at: records of the stages before it, and the thresholds of the user."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from loraprobe.defaults import MARGIN, RETENTION
from loraprobe.records import (
    BASELINES,
    FORMS,
    Compatibility,
    EvaluationRecords,
    EvidenceLevel,
    Measurement,
    Score,
)

COMPOSITIONS = ("merge", "router")  # what the decision is about
GUESSING = "guessing"  # the row of coverage that says what guessing would score
SAME = 1e-6  # two updates are equal if cosine and ratio of norms differ from 1 by no more


@dataclass(frozen=True)
class Kind:
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
class BaseShape:
    """What a base's config tells of it: `model_type`, and the hidden size or None."""

    architecture: str
    hidden_size: int | None


@dataclass(frozen=True)
class Evidence(EvaluationRecords):
    """All that is known about one set of adapters when the verdict is asked for.

    `level` is the strongest evidence that was gathered, `tasks` the number of task files,
    `margin` the gain that matters, `retention` the share of a specialist's gain that one model
    has to keep on every one of several tasks. `prior` is the share of successes expected where the
    case comes from, None for the calibration's own; `balanced` says that norms were made equal
    before composing. `base` is the shape of the base that was asked. `max_new_tokens` is None for
    the default limits of plain and worked answers. `choice` tells out of what library these
    adapters were chosen, None where they were given.
    """

    compatibility: Compatibility = field(default_factory=Compatibility)
    diagnostics: tuple[Measurement, ...] = ()
    tasks: int = 0
    level: EvidenceLevel = "weights"
    margin: float = MARGIN
    retention: float = RETENTION
    prior: float | None = None
    balanced: bool = False
    base: BaseShape | None = None
    max_new_tokens: int | None = None
    choice: LibraryChoice | None = None

    @property
    def task_names(self) -> tuple[str, ...]:
        """Names of the tasks that were scored, sorted."""
        return tuple(sorted({score.task for score in self.evaluation}))

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
        rows = [s for s in self.evaluation if s.kind in wanted and part in (None, s.part)]
        return tuple(sorted({row.system for row in rows}))

    def kind(self, system: str) -> str | None:
        """What kind of system a name is; None if it was not scored."""
        return next((s.kind for s in self.evaluation if s.system == system), None)

    def scores(self, system: str, part: str) -> tuple[Score, ...]:
        """One system's scores on one part, a row a task, sorted by task."""
        rows = (s for s in self.evaluation if s.system == system and s.part == part)
        return tuple(sorted(rows, key=lambda score: score.task))

    def macro(self, system: str, part: str) -> tuple[float, float, float] | None:
        """The macro means of a system's scores on one part and of their lower and upper bounds.

        More is better: losses have their sign turned. None if the system has no score there.
        """
        rows = [
            (-s.value, -s.ci95[1], -s.ci95[0]) if _loss(s) else (s.value, *s.ci95)
            for s in self.scores(system, part)
        ]
        if not rows:
            return None
        value, low, high = (sum(column) / len(rows) for column in zip(*rows, strict=True))
        return value, low, high

    def mean(self, system: str, part: str) -> float | None:
        """The first figure of `macro`."""
        found = self.macro(system, part)
        return None if found is None else found[0]

    def on(self, task: str) -> Evidence:
        """The scores of one task alone."""
        rows = tuple(score for score in self.evaluation if score.task == task)
        return replace(self, tasks=1, evaluation=rows, comparisons=(), gains=())

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
    def guessing(self) -> float | None:
        """What guessing would score, the mean over tasks; None if it was not computed."""
        rows = [c.value for c in self.coverage if c.name == GUESSING and c.value is not None]
        return sum(rows) / len(rows) if rows else None

    @property
    def tie(self) -> float:
        """The largest difference between two options that is worth no effort."""
        return min(self.margin, MARGIN)

    @property
    def baseline(self) -> float | None:
        """The best score of the base or a single adapter, on the form that suits it better.

        The macro mean over tasks; None where none of them was scored on every task.
        """
        tasks = len(self.task_names)
        found = [
            self.mean(name, part) or 0.0
            for name in self.systems(BASELINES)
            for part in FORMS
            if len(self.scores(name, part)) == tasks
        ]
        return max(found, default=None)

    @property
    def kind_of_task(self) -> Kind:
        """How many tasks were scored, the most hops of one, and how the question is judged."""
        hops = [int(s.part.removeprefix("hop")) for s in self.evaluation if s.part[:3] == "hop"]
        metrics = sorted({s.metric for s in self.evaluation if s.part == "question"})
        return Kind(len(self.task_names), max(hops, default=0), "+".join(metrics))

    @property
    def losses(self) -> bool:
        """Whether scores are losses, for which there is neither known nor ceiling."""
        return any(_loss(score) for score in self.evaluation)


def _loss(score: Score) -> bool:
    return score.metric == "answer_loss"
