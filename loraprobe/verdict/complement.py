"""Whether the single adapters together answer what none of them and no composition answers.

Somebody who chose the right adapter for every item would then score more, and a router that chooses
by prompt can approach that.
"""

from __future__ import annotations

from loraprobe.formatting import count, listing
from loraprobe.records import FORMS, Oracle, Reason
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.codes import reason_of
from loraprobe.verdict.evidence import Evidence
from loraprobe.verdict.ranking import Option

PER_PROMPT = "per=sequence"  # the option of routers that choose one adapter a prompt
ROUTER = f"centroid:{PER_PROMPT}"


def complement(evidence: Evidence, best: Option | None) -> Reason | None:
    """That the adapters complement each other, if no measured option comes near to that.

    best: the best measured option. The right choice of adapter has to be shown to score more than
    it, and more than adapters that are right independently of each other. None if a router that
    chooses by prompt was measured, because it has shown then what it can do.
    """
    routers = evidence.systems(("router",))
    if evidence.several or best is None or any(PER_PROMPT in name for name in routers):
        return None
    found = [
        row
        for row in evidence.oracles
        if row.part in FORMS
        and len({evidence.same_as(name) for name in row.adapters}) > 1
        and row.ci95[0] > max(best.high, row.independent)
    ]
    top = max(found, key=lambda row: (row.value, row.part), default=None)
    return None if top is None else _reason(evidence, top, best)


def _reason(evidence: Evidence, row: Oracle, best: Option) -> Reason:
    names = sorted({evidence.same_as(name) for name in row.adapters})
    alone = max(evidence.mean(name, row.part) or 0.0 for name in names)
    return reason_of(
        "adapters-complement",
        f"One of {listing(names)}, {fmt.PART[row.part]}, answers {round(row.value * row.n)} of "
        f"{count(row.n, 'question')}, no single one more than {fmt.number(alone)} of them: choose "
        f"the adapter by prompt ({ROUTER}).",
        row.value,
        best.score,
    )
