"""What is told of an adapter that was trained: its figures, reasons, and lines of the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

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
    Losses are nats a token of the answers held out, before training and at `best_step` of `steps`,
    after which it ended since these got no better, since all steps were taken, or by the time.
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
    ended: Literal["held_out", "steps", "time"]
    seconds: float
    start: str


@dataclass(frozen=True)
class LeftOut:
    """So many `items` on which nothing was trained, although they were asked for.

    why: `other`, which is not trained, leaves no room for a gain of the margin (no-room); the
    adapter `other`, which was trained on fewer, already gains (gains-already); or the time was over
    (time). score: of `other` in the first round; None where there is none.
    """

    items: int
    why: Literal["no-room", "gains-already", "time"]
    other: str = ""
    score: float | None = None


@dataclass(frozen=True)
class TrainedSystems:
    """The adapters that were trained for an evaluation, the one on most questions last, and what
    was left out."""

    training: tuple[TrainedRecord, ...] = ()
    not_trained: tuple[LeftOut, ...] = ()


class TrainPart(AuditPart):
    """The lines about training."""

    record = TrainedSystems
    leading: ClassVar[Sequence[str]] = ("trained",)

    def lines(self, audit: Audit) -> Iterator[tuple[str, str | Command]]:
        """What training gives, on how many questions, whether that is better, and the curve."""
        from loraprobe.report.limits import clause
        from loraprobe.report.parts import AlwaysShown

        found, verdict = audit.of_extension(TrainedSystems), audit.verdict
        if verdict is None:
            return
        rows, left_out = found.training, not_trained(found.not_trained, verdict.margin)
        evidence = Evidence(audit.evaluation, margin=verdict.margin)
        scored = ranked(evidence.scored([KIND]))
        if rows and scored:
            whole, best = rows[-1], scored[0]
            text = f"{_figure(best)} after training on {whole.items} of your questions"
            text += "" if whole.start == "base" else f", from {display_name(whole.start)}"
            stopped = ", when its time was over" if whole.ended == "time" else ""
            text += f" ({round(whole.seconds)} s{stopped})"
            codes = ("training-gains-more", "training-gains-less", "training-not-told-apart")
            told = [clause(verdict, code) for code in codes]
            label = "better" if told[0] and verdict.used != whole.system else "trained"
            yield label, AlwaysShown("; ".join(filter(None, (text, *told))))
            if len(rows) > 1 or left_out:
                yield "curve", AlwaysShown(_curve(verdict, evidence, rows))
        yield "curve", AlwaysShown(left_out)
        yield "watch", clause(verdict, "training-is-unsafe")


def not_trained(rows: Sequence[LeftOut], margin: float) -> str:
    """On how many questions nothing was trained, and why; "" for no rows."""
    if not rows:
        return ""
    one, few = rows[0], rows[0].items
    why = "the time was over"
    if one.why == "no-room":
        why = f"{display_name(one.other)} scores {one.score:z.2f}, which leaves no room for a gain"
        why += f" of {margin:g}"
    elif one.why == "gains-already":
        fewest = one.other.partition(":")[2]
        why = f"{fewest} already beat all that was not trained ({one.score:z.2f}); "
        why += f"--baseline=train:items={few} trains on {few}"
    return f"Nothing was trained on {listing(str(row.items) for row in rows)} questions: {why}."


def _figure(system: ScoredSystem) -> str:
    """A score with its interval; a loss, of which a lower one is better, as it is."""
    low, high = sorted(map(abs, (system.score.low, system.score.high)))
    return f"{system.shown:z.2f} {bounds((low, high))}"


def _curve(verdict: Verdict, evidence: Evidence, rows: Sequence[TrainedRecord]) -> str:
    """The scores of fewer questions, and how many of them score as much as the other system."""
    points = [(row.items, next(iter(ranked(evidence.scored([row.system]))), None)) for row in rows]
    known = [(items, score) for items, score in points if score is not None]
    text = ", ".join(f"{_figure(score)} on {items}" for items, score in known[:-1])
    other = _other(verdict, evidence, KIND)
    if other is None or other.score.value <= evidence.tie:  # which is nothing to reach
        return text
    enough = [n for n, one in known if one.score.value >= other.score.value - 1e-9]
    tried = listing(str(items) for items, _ in known)
    reached = f"{enough[0]} questions reach" if enough else f"{tried} questions do not reach"
    return "; ".join(filter(None, (text, f"{reached} {_named(other)} ({other.shown:z.2f})")))


class AboutTraining(Annotator):
    """Compares the adapter that was trained with what a verdict is about."""

    def annotate(self, verdict: Verdict, evidence: Evidence) -> Annotation:
        found = ranked(evidence.scored([KIND]))
        if not found:
            return Annotation()
        return Annotation((*_compared(verdict, evidence, found[0]), *_unsafe(evidence, found[0])))


def _other(verdict: Verdict, evidence: Evidence, own: str) -> ScoredSystem | None:
    """What is used, if it is not `own`, or else what was decided on, in the form of that."""
    used = verdict.used if verdict.used != own else None
    gain = verdict.gain
    parts: Sequence[ItemPart] = FORMS
    if gain is not None and (not used or (verdict.composes and gain.system == used)):
        parts = (gain.form,)
    name = used or (gain.system if gain is not None else "")
    return next(iter(ranked(evidence.scored([name], parts))), None)


def _named(system: ScoredSystem) -> str:
    return "a chain" if system.kind == "chain" else str(system)


def _compared(verdict: Verdict, evidence: Evidence, own: ScoredSystem) -> Iterator[Reason]:
    """How the adapter that was trained stands to what is used, or else to what was decided on."""
    other = _other(verdict, evidence, own.system)
    if other is None:
        return
    difference = evidence.difference(own, other, adjusted=True)
    code = "training-not-told-apart"
    if gains_more(evidence, own, other):
        code = "training-gains-more"
    elif gains_more(evidence, other, own):
        code, difference = "training-gains-less", -difference
    yield reason_of(
        code,
        difference.value,
        evidence.margin,
        score=f"{own.shown:z.2f}",
        difference=gained(difference.value, (difference.low, difference.high)).removeprefix("+"),
        other=_named(other),
    )


def gains_more(evidence: Evidence, own: ScoredSystem, other: ScoredSystem) -> bool:
    """Whether a system is shown to be better than another one, and by more than a tie."""
    difference = evidence.difference(own, other, adjusted=True)
    return difference.low > 0 and difference.value > evidence.tie


def _unsafe(evidence: Evidence, own: ScoredSystem) -> Iterator[Reason]:
    """The guards that the adapter that was trained is shown to lose."""
    rows = [row for row in evidence.measured.guards if row.system == own.system]
    if lost := [row for row in rows if row.outcome == "unlikely"]:
        worst = min(row.estimate.high for row in lost)
        yield reason_of("training-is-unsafe", worst, guards=listing(row.task for row in lost))
