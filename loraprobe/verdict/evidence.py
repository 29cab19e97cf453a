"""What a verdict may look at: records of the stages before it, and the thresholds of the user."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from loraprobe.records import (
    Attribution,
    Comparison,
    Compatibility,
    Coverage,
    EvidenceLevel,
    Gain,
    Measurement,
    Score,
)

COMPOSITIONS = ("merge", "router")  # what the decision is about
BASELINES = ("base", "adapter")  # what a composition has to beat


@dataclass(frozen=True)
class Evidence:
    """All that is known about one set of adapters when the verdict is asked for.

    `level` is the strongest evidence that was gathered, `tasks` the number of task files,
    `margin` the gain that matters, `retention` the share of a specialist's gain that one model
    has to keep on every one of several tasks. `prior` is the share of successes expected where the
    case comes from, None for the calibration's own; `families` are the kinds of composition asked
    for that a calibration may cover; `balanced` says that norms were made equal before composing.
    """

    compatibility: Compatibility = field(default_factory=Compatibility)
    diagnostics: tuple[Measurement, ...] = ()
    coverage: tuple[Coverage, ...] = ()
    evaluation: tuple[Score, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    gains: tuple[Gain, ...] = ()
    attribution: tuple[Attribution, ...] = ()
    tasks: int = 0
    level: EvidenceLevel = "weights"
    margin: float = 0.05
    retention: float = 0.8
    prior: float | None = None
    families: tuple[str, ...] = ("average", "sum", "router")
    balanced: bool = False

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
        """The level, which is not `evaluation` unless a merge or a router was scored."""
        if self.level == "evaluation" and not self.systems(COMPOSITIONS):
            return "base"
        return self.level

    def systems(self, kinds: Iterable[str], part: str | None = None) -> tuple[str, ...]:
        """Names of the scored systems of these kinds, sorted."""
        wanted = set(kinds)
        return tuple(
            sorted(
                {
                    score.system
                    for score in self.evaluation
                    if score.kind in wanted and part in (None, score.part)
                }
            )
        )

    def kind(self, system: str) -> str | None:
        """What kind of system a name is; None if it was not scored."""
        return next((s.kind for s in self.evaluation if s.system == system), None)

    def scores(self, system: str, part: str) -> tuple[Score, ...]:
        """One system's scores on one part, a row a task, sorted by task."""
        rows = (s for s in self.evaluation if s.system == system and s.part == part)
        return tuple(sorted(rows, key=lambda score: score.task))

    def mean(self, system: str, part: str) -> float | None:
        """The macro mean of a system's scores on one part, losses with their sign turned.

        More is better. None if the system has no score there.
        """
        rows = [-s.value if _loss(s) else s.value for s in self.scores(system, part)]
        return sum(rows) / len(rows) if rows else None

    def lower(self, system: str, part: str) -> float | None:
        """The macro mean of the lower bounds of `mean`: no optimism."""
        rows = [-s.ci95[1] if _loss(s) else s.ci95[0] for s in self.scores(system, part)]
        return sum(rows) / len(rows) if rows else None

    @property
    def losses(self) -> bool:
        """Whether scores are losses, for which there is neither known nor ceiling."""
        return any(_loss(score) for score in self.evaluation)


def _loss(score: Score) -> bool:
    return score.metric == "answer_loss"
