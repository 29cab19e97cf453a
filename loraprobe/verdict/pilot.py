"""The verdict on a first round of compositions, on a few items of each task.

The rules of an evaluation hold, so the round decides only where its interval does; with 30 items
that takes a gain of about 0.3. Where it leaves the case open, the rules on base and single adapters
may still decide, unless the round measured a gain above the margin: what compositions do outranks
what is expected of them.
"""

from __future__ import annotations

from dataclasses import replace

from loraprobe.formatting import count, listing
from loraprobe.records import Reason, Verdict
from loraprobe.verdict.codes import reason_of
from loraprobe.verdict.evidence import COMPOSITIONS, Evidence


def judge_pilot(scored: Verdict, before: Verdict, evidence: Evidence) -> Verdict:
    """One verdict from two: by the rules of an evaluation, and by those before one."""
    first = _first_round(evidence)
    gained = scored.gain is not None and scored.gain.difference > evidence.margin
    if before.decision == "unlikely" and scored.decision != "likely" and not gained:
        told = [replace(reason, severity="info") for reason in scored.reasons[:1]]
        reasons = (*before.reasons, first, *told)
        if scored.decision == "inconclusive":
            return replace(before, reasons=reasons)
        system, gain = scored.system, scored.gain
        return replace(before, evidence="pilot", reasons=reasons, system=system, gain=gain)
    expected = [
        replace(r, severity="info") for r in before.reasons if before.decision == "unlikely"
    ]
    cheapest = [r for r in before.reasons if r.code == "next-evidence"]
    more = cheapest if scored.decision == "inconclusive" else []
    # Controls are asked only where a composition gains: elsewhere nothing depends on them.
    kept = [r for r in scored.reasons if r.code != "controls-not-run" or r.severity == "decisive"]
    reasons = (*kept, first, *expected, *more)
    return replace(scored, evidence="pilot", reasons=reasons)


def _first_round(evidence: Evidence) -> Reason:
    """Which systems were asked, and how many items."""
    systems = evidence.systems(COMPOSITIONS)
    items = max(row.n for row in evidence.evaluation if row.system in systems)
    each = " of each task" if evidence.several else ""
    return reason_of(
        "first-round",
        f"This is a first round of {listing(systems)} on {count(items, 'item')}{each}; "
        "merge-and-eval --resume uses the answers again.",
        float(items),
    )
