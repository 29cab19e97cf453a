"""Records of the verdict: the decision, the evidence, the reasons, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

from loraprobe.defaults import MARGIN
from loraprobe.records.command import NOTHING, Command
from loraprobe.records.measurements import ActionKind, Interval, ItemPart, kinds
from loraprobe.records.plain import WrittenAsText

Decision = Literal["likely", "unlikely", "inconclusive", "incompatible"]
# On what a verdict rests, from the weakest.
EvidenceLevel = Literal[
    "weights",  # files of adapters; no model was asked
    "probes",  # replies to prompts that have no known answers
    "base",  # the base and each adapter alone on the task, perhaps a chain
    "pilot",  # compositions too, in a first round on a few items
    "evaluation",  # the rounds of an evaluation
]
# What would tell more than was asked; `verdict.next_command` has the command for each.
Missing = Literal[
    "answers",  # no system is shown to answer more than guessing
    "metric",  # the gold answers need another metric
    "controls",  # the composition that the verdict is about has none yet
    "items",  # more of them would decide
    "guard-items",  # more items of the guards would decide
    "compositions",  # no merge and no router was asked
    "chain",  # a chain was asked, of too few items to decide, and no merge and no router
    "rank",  # the compositions lost too much to theirs
    "wording",  # replies are right in other words than the gold answers
    "harder-items",  # nothing is left to gain on these
    "time",  # a budget ended the run
]


@dataclass(frozen=True)
class Reason:
    """One reason of a verdict: what was measured, against which threshold, and whose it is.

    A "decisive" reason carries the decision, a "warning" limits it, "info" is neither.
    """

    code: str
    message: str
    value: float | None = None
    threshold: float | None = None
    source: str = ""
    severity: Literal["decisive", "warning", "info"] = "info"


@dataclass(frozen=True)
class DecisiveGain:
    """The gain that the decision is about: one composition against the best of base and singles.

    `form` is the form of the question, "question" or "steps"; `ci95` covers the choice of the best
    among systems. Of several tasks the difference is the mean. `probability` is that this gain
    exceeds the margin and, of several tasks, that every specialist's skill is kept; None where
    nobody tells it.
    """

    system: str
    form: ItemPart
    against: str
    difference: float
    ci95: Interval
    n: int
    probability: float | None = None


@dataclass(frozen=True)
class Action(WrittenAsText):
    """What to do; as a text it is its kind, and `use-single:NAME`.

    adapter: the name of the adapter of "use-single"; "" for any other kind.
    """

    kind: ActionKind
    adapter: str = ""

    def __str__(self) -> str:
        return f"{self.kind}:{self.adapter}" if self.adapter else self.kind

    @classmethod
    def read(cls, text: str) -> Action:
        """The action that a JSON document has as this text."""
        kind, _, adapter = text.partition(":")
        return cls(cast(ActionKind, kind), adapter)


@dataclass(frozen=True)
class Verdict:
    """The decision, the kind of evidence for it, its reasons, and what to do.

    `composes` says that `action` uses `system`, a merge or a router that was measured.
    `probability` is that of this very decision, for a share `prior` of compositions that gain; it
    is None where nobody tells it. `margin` is the gain that was asked for. The first of `reasons`
    changes most for the reader. `next`, the command to run next, is known where the audit is made;
    it is a text in JSON, in which local directories have their names, and `next_in` says of what.

    `missing` is what would tell more (`Missing` lists it); None where that is none of these.
    """

    decision: Decision
    evidence: EvidenceLevel
    reasons: tuple[Reason, ...] = ()
    system: str | None = None
    action: Action = Action("gather-evidence")
    composes: bool = False
    missing: Missing | None = None
    probability: float | None = None
    prior: float | None = None
    gain: DecisiveGain | None = None
    margin: float = MARGIN
    next: Command = NOTHING
    by_task: Mapping[str, str] = field(default_factory=dict)
    next_in: Literal["shell", "python"] | None = None

    def __post_init__(self) -> None:
        language = "python" if self.next.in_python else "shell"
        object.__setattr__(self, "next_in", language if self.next else None)

    @property
    def codes(self) -> frozenset[str]:
        """The codes of its reasons."""
        return frozenset(reason.code for reason in self.reasons)

    @property
    def compositions_not_asked(self) -> bool:
        """Whether no merge and no router was asked, and what was asked needs no more evidence."""
        return self.missing == "compositions"

    @property
    def used(self) -> str | None:
        """The system that the action uses, where it was scored; None where it uses none, or several
        in turn."""
        if self.composes:
            return self.system
        named = {kind.action: kind.name for kind in kinds().values()}
        return named.get(self.action.kind) or self.action.adapter or None
