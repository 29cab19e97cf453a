"""Reasons from coverage: which system knows which hop, and how familiar the base is with the names.

A hop is *known* to a system if the lower bound of its accuracy is at least KNOWN. It is *unknown*
if the upper bound of the share of replies in which the answer stands, in whatever words, lies below
UNKNOWN. Between the two nothing is claimed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from loraprobe.defaults import (
    FAMILIAR,
    FEWEST_ANSWERS,
    KNOWN,
    SAID_OTHERWISE,
    UNFAMILIAR,
    UNKNOWN,
)
from loraprobe.formatting import count
from loraprobe.records import BASELINES, Interval, Reason
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.codes import reason_of
from loraprobe.verdict.evidence import Evidence


@dataclass(frozen=True)
class Knowledge:
    """How well one system answers one hop.

    `held` is the share of replies in which the answer stands, `held_ci95` its interval.
    """

    value: float
    ci95: Interval
    held: float
    held_ci95: Interval

    @property
    def known(self) -> bool:
        return self.ci95[0] >= KNOWN

    @property
    def unknown(self) -> bool:
        return self.held_ci95[1] < UNKNOWN


def hop_knowledge(evidence: Evidence) -> dict[int, dict[str, Knowledge]]:
    """hop -> system ("base" or an adapter's name) -> how well it answers; empty for several tasks.

    The probe `hop_accuracy` gives the accuracy, or the scores of the parts `hop1`, `hop2` ... if
    the probe did not run; those scores also say in how many replies the answer stands.
    """
    found: dict[int, dict[str, Knowledge]] = {}
    if evidence.several:
        return found
    for score in evidence.evaluation:
        if score.kind in BASELINES and score.part.startswith("hop") and not evidence.losses:
            name = "base" if score.kind == "base" else score.system
            hop = int(score.part.removeprefix("hop"))
            found.setdefault(hop, {})[name] = Knowledge(
                score.value,
                score.ci95,
                score.value if score.contains is None else score.contains,
                score.contains_ci95 or score.ci95,
            )
    for row in evidence.coverage:
        if row.name == "hop_accuracy" and row.hop and row.value is not None and row.ci95:
            name = row.adapters[0] if row.adapters else "base"
            scored = found.setdefault(row.hop, {}).get(name)
            held = (scored.held, scored.held_ci95) if scored else (row.value, row.ci95)
            found[row.hop][name] = Knowledge(row.value, row.ci95, *held)
    return dict(sorted(found.items()))


def about_hops(evidence: Evidence) -> Iterator[Reason]:
    """One reason for each hop of one task: the system that answers it best, and the base."""
    for hop, systems in hop_knowledge(evidence).items():
        best = min(systems, key=lambda name: (-systems[name].value, -systems[name].held, name))
        who = "the base" if best == "base" else best
        text = f"Hop {hop}: {who} answers best, {fmt.number(systems[best].value)}"
        if systems[best].held - systems[best].value > SAID_OTHERWISE:
            text += f", and the answer stands in {fmt.number(systems[best].held)} of its replies"
        if systems[best].held == 0:
            text = f"Hop {hop} is answered by no adapter"
            text += " and not by the base" if "base" in systems else ""
        elif "base" in systems and best != "base":
            text += f"; the base {fmt.number(systems['base'].value)}"
        code = "hop-known" if systems[best].known else "hop-in-doubt"
        code = "hop-unknown" if all(one.unknown for one in systems.values()) else code
        yield reason_of(code, systems[best].value, KNOWN, who_answers=text)


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
