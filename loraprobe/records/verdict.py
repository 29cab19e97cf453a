"""Records of the verdict: the decision, the evidence, the reasons, what to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loraprobe.defaults import MARGIN
from loraprobe.records.command import NOTHING, Command
from loraprobe.records.estimates import Interval
from loraprobe.records.measurements import Forecast

Decision = Literal["likely", "unlikely", "inconclusive", "incompatible"]
EvidenceLevel = Literal["weights", "probes", "base", "pilot", "evaluation"]


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
    exceeds the margin and, of several tasks, that every specialist's skill is kept; None where the
    calibration says nothing about it.
    """

    system: str
    form: str
    against: str
    difference: float
    ci95: Interval
    n: int
    probability: float | None = None


@dataclass(frozen=True)
class Verdict:
    """The decision, the kind of evidence for it, its reasons, and what to do.

    `action` is `merge`, `route`, `step-by-step`, `chain`, `use-single:NAME`, `use-base`,
    `switch-adapters`, `train-target-adapter`, `gather-evidence` or `fix`. `probability` is that of
    this very decision, for a share `prior` of compositions that gain; it is None where the
    calibration says nothing about it. `margin` is the gain that was asked for. `next` is the
    command to run next, a text in JSON, in which local directories have their names. The first of
    `reasons` changes most for the reader.
    """

    decision: Decision
    evidence: EvidenceLevel
    reasons: tuple[Reason, ...] = ()
    system: str | None = None
    action: str = "gather-evidence"
    probability: float | None = None
    prior: float | None = None
    forecast: Forecast | None = None
    gain: DecisiveGain | None = None
    margin: float = MARGIN
    next: Command = NOTHING

    @property
    def answers_without_composing(self) -> bool:
        """Whether no merge and no router was asked, and what was asked says what to use."""
        deciding = [reason.code for reason in self.reasons if reason.severity == "decisive"]
        return deciding == ["compositions-not-asked"] and self.action != "gather-evidence"

    @property
    def composes(self) -> bool:
        """Whether the advice is to use `system`, the merge or router that was measured."""
        advised = self.decision == "likely" or any(r.code == "best-measured" for r in self.reasons)
        return advised and self.action in ("merge", "route", "step-by-step")
