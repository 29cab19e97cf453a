"""What a screen tells beside a decision: out of what was chosen, and what a budget left unasked."""

from __future__ import annotations

from dataclasses import dataclass

from loraprobe.formatting import count
from loraprobe.records import Reason, Verdict
from loraprobe.verdict import Annotation, Annotator, Evidence
from loraprobe.verdict.reasons import reason_of


@dataclass(frozen=True)
class LibraryChoice:
    """Out of what the compositions were chosen, on items that serve nothing else.

    `adapters` were asked alone, `sets` of them compared, and `proved` of these composed and asked
    up to `others` items. `passes` are numbers of systems with the numbers of questions that they
    were asked together. `unasked` adapters were left out when the budget ended.
    """

    adapters: int
    sets: int
    proved: int
    passes: tuple[tuple[int, int], ...]
    others: int
    unasked: int = 0


@dataclass(frozen=True)
class Chosen(Annotator):
    """Tells the choice. A budget that left adapters unasked, or ended the rounds, leaves open what
    is not `likely`. budget: whether there was one."""

    choice: LibraryChoice
    budget: bool

    def annotate(self, verdict: Verdict, evidence: Evidence) -> Annotation:
        chosen, ended = about_choice(self.choice), self._ended(verdict, evidence)
        if ended is None:
            return Annotation((chosen,))
        return Annotation((ended, chosen), missing="time")

    def _ended(self, verdict: Verdict, evidence: Evidence) -> Reason | None:
        """What the budget left unasked that might change the verdict."""
        choice, rounds = self.choice, evidence.measured.rounds
        no_room = verdict.missing == "harder-items"  # whoever composes: of one that was asked
        nothing = verdict.missing == "answers"
        is_open = verdict.decision == "inconclusive" and not nothing
        if choice.unasked and (verdict.decision == "unlikely" or nothing) and not no_room:
            every = count(choice.adapters + choice.unasked, "adapter")
            left, what = choice.unasked, f"{choice.unasked:,} of {every} were not asked"
        elif self.budget and rounds is not None and rounds.early and is_open:
            left = rounds.total - rounds.items
            what = f"{rounds.items} of {rounds.total} items were asked"
        else:
            return None
        return reason_of("budget-ended", float(left), decisive=True, what=what)


def about_choice(choice: LibraryChoice) -> Reason:
    """Out of how many adapters and sets of them the compositions were chosen, and at what cost."""
    (systems, items), *tried = choice.passes
    passes = [f"{systems:,} passes over {count(items, 'question')}"]
    passes += [f"the sums of {sets:,} sets over {items:,} more" for sets, items in tried]
    sets = f" and {choice.sets:,} sets of them" if choice.sets else ""
    proved = f"{count(choice.proved, 'set')} proved" if choice.proved else "the best alone proved"
    adapters = count(choice.adapters, "adapter")
    if choice.unasked:
        every = count(choice.adapters + choice.unasked, "adapter")
        adapters = f"{choice.adapters:,} of {every} (--budget left the others unasked)"
    chosen = f"from {adapters}{sets}: {', '.join(passes)}"
    if not choice.adapters:
        chosen, proved = f"before any adapter was asked: {count(items, 'question')}", "the base"
    others = count(choice.others, "other")
    of = float(choice.sets)
    return reason_of("chosen-from-library", of, chosen=chosen, proved=proved, others=others)
