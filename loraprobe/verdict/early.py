"""The reason of a verdict that was reached before all items were asked."""

from __future__ import annotations

from loraprobe.formatting import count
from loraprobe.records import Reason
from loraprobe.verdict.evidence import Evidence


def about_rounds(evidence: Evidence) -> list[Reason]:
    """That the run stopped early, at which look; empty if it did not."""
    rounds = evidence.rounds
    if rounds is None or not rounds.early:
        return []
    return [
        Reason(
            "stopped-early",
            f"The decision held at look {rounds.used} of {rounds.planned}, after {rounds.items} of "
            f"{count(rounds.total, 'item')}, so the run stopped early: the intervals allow for "
            "every look. --all-items asks the rest.",
            float(rounds.items),
            float(rounds.total),
            f"alpha spent over the looks; intervals of level {rounds.level:.4g} at this one",
        )
    ]
