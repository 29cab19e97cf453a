"""Reasons from coverage: which system knows which hop, and how familiar the base is with the names.

A hop is *known* to a system if the lower bound of its accuracy is at least KNOWN. It is *unknown*
if the upper bound of the share of replies in which the answer stands, in whatever words, lies below
UNKNOWN. Between the two nothing is claimed. Both thresholds are conventions of this tool.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from loraprobe.defaults import (
    FAMILIAR,
    FEWEST_ANSWERS,
    KNOWN,
    SAID_OTHERWISE,
    UNFAMILIAR,
    UNKNOWN,
)
from loraprobe.formatting import count
from loraprobe.records import BASELINES, Interval, Reason, Score
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.codes import reason_of
from loraprobe.verdict.evidence import Evidence

Hops = Mapping[int, Mapping[str, Score]]


def hop_knowledge(evidence: Evidence) -> Hops:
    """hop -> "base" or an adapter's name -> its score, for one task whose scores are no losses."""
    found: dict[int, dict[str, Score]] = {}
    for score in () if evidence.several or evidence.losses else evidence.evaluation:
        if score.kind in BASELINES and score.part.startswith("hop"):
            hop, base = int(score.part.removeprefix("hop")), score.kind == "base"
            found.setdefault(hop, {})["base" if base else score.system] = score
    return dict(sorted(found.items()))


def is_known(score: Score) -> bool:
    return score.ci95[0] >= KNOWN


def is_unknown(score: Score) -> bool:
    return held_at_most(score) < UNKNOWN


def held_at_most(score: Score) -> float:
    """The upper bound of the share of replies in which the answer stands."""
    return (score.contains_ci95 or score.ci95)[1]


def about_hops(evidence: Evidence) -> Iterator[Reason]:
    """One reason for each hop of one task: the system that answers it best, and the base."""
    for hop, systems in hop_knowledge(evidence).items():
        held = {n: s.value if s.contains is None else s.contains for n, s in systems.items()}
        best = min(systems, key=lambda name: (-systems[name].value, -held[name], name))
        value, who = systems[best].value, "the base" if best == "base" else best
        text = f"Hop {hop}: {who} answers best, {fmt.number(value)}"
        if held[best] - value > SAID_OTHERWISE:
            text += f", and the answer stands in {fmt.number(held[best])} of its replies"
        if held[best] == 0:
            text = f"Hop {hop} is answered by no adapter"
            text += " and not by the base" if "base" in systems else ""
        elif "base" in systems and best != "base":
            text += f"; the base {fmt.number(systems['base'].value)}"
        code = "hop-known" if is_known(systems[best]) else "hop-in-doubt"
        code = "hop-unknown" if all(map(is_unknown, systems.values())) else code
        yield reason_of(code, value, KNOWN, who_answers=text)


def about_familiarity(evidence: Evidence) -> Iterator[Reason]:
    """How familiar the base is with the questions, from the probes that ran."""
    swaps = [row for row in evidence.coverage if row.name == "name_swap" and not row.adapters]
    with_hops = {row.task for row in swaps if row.hop}
    for row in evidence.coverage:
        if row.name == "familiarity" and not row.adapters and row.value is not None:
            yield _about_share(row.value, row.n)
    for row in swaps:
        # The rows of the hops say more than the row of the composed question.
        has_hop_rows = row.hop is None and row.task in with_hops
        if row.value is not None and row.ci95 and not has_hop_rows:
            where = f"hop {row.hop} of {row.task}" if row.hop else row.task or "the probes"
            yield _about_names(where, row.value, row.ci95)


def _about_share(share: float, n: int) -> Reason:
    if n < FEWEST_ANSWERS:
        answers = count(n, "answer")
        return reason_of("probes-too-few", float(n), float(FEWEST_ANSWERS), answers=answers)
    word = familiarity(share)
    threshold = UNFAMILIAR if word == "unfamiliar" else FAMILIAR
    return reason_of(f"probes-{word}", share, threshold, n=n)


def _about_names(where: str, value: float, ci95: Interval) -> Reason:
    times, low, high = (_factor(math.exp(min(figure, 20.0))) for figure in (value, *ci95))
    return reason_of(
        "familiar-names" if ci95[0] > 0 else "unfamiliar-names",
        value,
        0.0,
        times=f"On {where} the real names make the answer {times} [{low}, {high}] times as likely "
        "as made-up ones",
        tail="they do not help the base"
        if ci95[1] < 0
        else "it is not shown that the base knows them",
    )


def _factor(value: float) -> str:
    """A factor with two digits, from 10 as a whole number."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def familiarity(share: float) -> str:
    """familiar | mixed | unfamiliar, by the share of tokens that the base would choose too."""
    if share >= FAMILIAR:
        return "familiar"
    return "unfamiliar" if share <= UNFAMILIAR else "mixed"
