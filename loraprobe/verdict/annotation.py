"""What an extension tells beside a decision, and may miss: a decision is then `inconclusive`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from loraprobe.records import Missing, Reason, Verdict
from loraprobe.verdict.evidence import Evidence


@dataclass(frozen=True)
class Annotation:
    """Reasons, and how probable the verdict's gain is.

    probability: that it exceeds the margin, with every skill and guard kept; None where nobody can
    tell. prior: the share of compositions expected to gain, for which that holds. missing: what was
    not asked and might change the decision, which is open then; a reason says so.
    """

    reasons: tuple[Reason, ...] = ()
    probability: float | None = None
    prior: float | None = None
    missing: Missing | None = None

    def on(self, verdict: Verdict) -> Verdict:
        """The verdict with these reasons and this probability; `inconclusive` where `missing` says
        what was not asked.

        The verdict's gain gets the probability as it is. The verdict gets that of its own decision:
        the same for `likely`, 1 minus it for `unlikely`. Below 0.5 the verdict gets none, because
        the decision then rests on more than the gain.
        """
        told = replace(verdict, reasons=(*verdict.reasons, *self.reasons))
        if self.missing is not None:
            told = replace(told, decision="inconclusive", missing=self.missing)
        if self.probability is None or verdict.gain is None:
            return told
        sure = {"likely": self.probability, "unlikely": 1 - self.probability}
        own = sure.get(verdict.decision, 0.0)
        return replace(
            told,
            gain=replace(verdict.gain, probability=self.probability),
            probability=own if own >= 0.5 else None,
            prior=self.prior,
        )


class Annotator(ABC):
    """Tells something beside a decision, such as how probable the gain is."""

    @abstractmethod
    def annotate(self, verdict: Verdict, evidence: Evidence) -> Annotation:
        """What is told about a verdict, from the evidence that it rests on."""
