"""What is told of an adapter that was trained: its figures, reasons, and lines of the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from loraprobe.extension import AuditPart
from loraprobe.formatting import bounds, gained, listing
from loraprobe.records import (
    FORMS,
    Audit,
    Command,
    ItemPart,
    Reason,
    Verdict,
    display_name,
)
from loraprobe.verdict import Annotation, Annotator, Evidence
from loraprobe.verdict.evidence import ScoredSystem, ranked
from loraprobe.verdict.reasons import reason_of

KIND = "trained"  # of systems, and the name of the one that is advised


@dataclass(frozen=True)
class TrainedRecord:
    """How an adapter was trained that was evaluated as `system`.

    items: the questions that it took, of which `held_out` said when to stop; `left` are scored.
    start: "base", or the merge on which it was trained.
    Losses are nats a token of the answers held out, before training and at `best_step` of `steps`.
    """

    system: str
    items: int
    held_out: int
    left: int
    rank: int
    seed: int
    chat_template: bool
    steps: int
    best_step: int
    loss_before: float
    loss: float
    learning_rate: float
    seconds: float
    start: str


@dataclass(frozen=True)
class TrainedSystems:
    """The adapters that were trained for an evaluation, the one on most questions last."""

    training: tuple[TrainedRecord, ...] = ()


class TrainPart(AuditPart):
    """The lines about training."""

    record = TrainedSystems
    leading: ClassVar[Sequence[str]] = ("trained",)

    def lines(self, audit: Audit) -> Iterator[tuple[str, str | Command]]:
        """What training gives, on how many questions, and whether that is better."""
        from loraprobe.report.limits import clause
        from loraprobe.report.parts import AlwaysShown

        rows, verdict = audit.of_extension(TrainedSystems).training, audit.verdict
        scored = ranked(Evidence(audit.evaluation).scored([KIND]))
        if verdict is None or not rows or not scored:
            return
        whole, best = rows[-1], scored[0]
        figure = f"{best.shown:z.2f} {bounds((abs(best.score.low), abs(best.score.high)))}"
        text = f"{figure} after training on {whole.items} of your questions"
        text += "" if whole.start == "base" else f", from {display_name(whole.start)}"
        text += f" ({round(whole.seconds)} s)"
        codes = ("training-gains-more", "training-gains-less", "training-not-told-apart")
        told = [clause(verdict, code) for code in codes]
        label = "better" if told[0] and verdict.used != whole.system else "trained"
        yield label, AlwaysShown("; ".join(filter(None, (text, *told))))
        yield "watch", clause(verdict, "training-is-unsafe")


class AboutTraining(Annotator):
    """Compares the adapter that was trained with what a verdict is about."""

    def annotate(self, verdict: Verdict, evidence: Evidence) -> Annotation:
        found = ranked(evidence.scored([KIND]))
        if not found:
            return Annotation()
        return Annotation((*_compared(verdict, evidence, found[0]), *_unsafe(evidence, found[0])))


def _compared(verdict: Verdict, evidence: Evidence, own: ScoredSystem) -> Iterator[Reason]:
    """How the adapter that was trained stands to what is used, or else to what was decided on."""
    used = verdict.used if verdict.used != own.system else None
    gain = verdict.gain
    parts: Sequence[ItemPart] = FORMS
    if gain is not None and (not used or (verdict.composes and gain.system == used)):
        parts = (gain.form,)
    name = used or (gain.system if gain is not None else "")
    others = ranked(evidence.scored([name], parts))
    if not others:
        return
    difference = evidence.difference(own, others[0], adjusted=True)
    code = "training-not-told-apart"
    if difference.low > 0 and difference.value > evidence.tie:
        code = "training-gains-more"
    elif difference.high < 0 and difference.value < -evidence.tie:
        code, difference = "training-gains-less", -difference
    yield reason_of(
        code,
        difference.value,
        evidence.margin,
        score=f"{own.shown:z.2f}",
        difference=gained(difference.value, (difference.low, difference.high)).removeprefix("+"),
        other="a chain" if others[0].kind == "chain" else str(others[0]),
    )


def _unsafe(evidence: Evidence, own: ScoredSystem) -> Iterator[Reason]:
    """The guards that the adapter that was trained is shown to lose."""
    rows = [row for row in evidence.measured.guards if row.system == own.system]
    if lost := [row for row in rows if row.outcome == "unlikely"]:
        worst = min(row.estimate.high for row in lost)
        yield reason_of("training-is-unsafe", worst, guards=listing(row.task for row in lost))
