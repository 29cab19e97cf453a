"""The verdict before all items were asked: on weights, probes, base and adapters, a first round.

Weights and probes decide nothing. Coverage and single adapters on the task decide `unlikely` in
three cases:

- *nothing-to-gain*: the base or one adapter is so good that no composition can gain the margin
  (its lower bound lies above 1 - margin).
- *hop-unknown-to-all*: some hop is unknown to every adapter and to the base, and none of them
  answers the composed question (arXiv 2411.16353, 2506.13479).
- *disjoint-hops*: every hop is known to one adapter of its own and unknown to all others and to the
  base, and none of them answers the composed question: two one-hop adapters over unfamiliar
  entities do not compose (arXiv 2506.13479).

A system knows a hop if the lower bound of its accuracy is at least KNOWN. A hop or a question is
unknown to it if the upper bound of the share of its replies in which the answer stands, in whatever
words, lies below UNKNOWN. Both are conventions of this tool. None of
these levels gives `likely`: whether the pieces compose has to be measured.

On a *first round* of compositions, on a few items of each task, the rules of an evaluation hold, so
it decides only where its interval does; with 30 items that takes a gain of about 0.3. Where it
leaves the case open, the rules above may still decide, unless it measured a gain above the margin:
what compositions do outranks what is expected of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from loraprobe.defaults import FEWEST_SETS, MARGIN, UNKNOWN
from loraprobe.formatting import count, listing
from loraprobe.records import BASELINES, EvidenceLevel, Reason, Verdict
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.calibration import Calibration, share_above
from loraprobe.verdict.codes import reason_of
from loraprobe.verdict.evidence import COMPOSITIONS, Evidence
from loraprobe.verdict.knowledge import Knowledge, hop_knowledge
from loraprobe.verdict.ranking import best_option, options

# What compositions of others gained, which is all that is known before a question is asked.
ELSEWHERE = reason_of(
    "measured-elsewhere",
    f"Of 603 compositions of 5 to 30 community adapters on Llama-3.1-8B, 19 % gained more than "
    f"{fmt.number(MARGIN)} over base and singles (arXiv 2602.12323).",
    0.19,
    source="computed from the data of arXiv 2602.12323: LoraHub, weights searched on 100 examples, "
    "46 tasks",
)
Hops = Mapping[int, Mapping[str, Knowledge]]


OPEN: dict[EvidenceLevel, tuple[Reason, ...]] = {  # why a level decides nothing, and what may
    "weights": (
        reason_of(
            "weights-do-not-decide",
            "Weights tell whether adapters fit together, not whether composing them helps.",
        ),
        reason_of(
            "next-evidence",
            "The cheapest next evidence: --probe auto asks the base without a task file.",
            source="cost: no composition is built or scored",
        ),
        ELSEWHERE,
    ),
    "probes": (
        reason_of(
            "probes-do-not-decide",
            "Probes tell what the base knows, not whether a composition answers questions.",
        ),
        reason_of(
            "next-evidence",
            "The cheapest next evidence: a task file with questions that need both adapters.",
            source="a verdict needs a question with a known answer",
        ),
        ELSEWHERE,
    ),
    "base": (
        reason_of(
            "base-does-not-decide",
            "Base and single adapters leave it open: nothing is at its ceiling, unknown to all, or "
            "split over adapters that share nothing.",
        ),
        reason_of(
            "next-evidence",
            "The cheapest next evidence: merge-and-eval scores the compositions themselves.",
            source="coverage cannot see whether known pieces compose",
        ),
    ),
}


def undecided(level: EvidenceLevel) -> Verdict:
    """Inconclusive at this level, with the cheapest next evidence."""
    return Verdict("inconclusive", level, OPEN[level])


def judge_base(evidence: Evidence) -> Verdict:
    """Coverage and single adapters on the task: unlikely in three cases, else inconclusive."""
    hops = {} if evidence.several else hop_knowledge(evidence)
    for rule in (nothing_to_gain, _hop_unknown, _disjoint):
        verdict = rule(evidence, hops)
        if verdict is not None:
            return verdict
    return undecided("base")


def nothing_to_gain(evidence: Evidence, hops: Hops = MappingProxyType({})) -> Verdict | None:
    """`unlikely` if the base or an adapter lies above 1 - margin on every task, in one form."""
    if evidence.losses:
        return None  # a loss has no ceiling
    ceiling = 1 - evidence.margin
    lows = {
        one: min(row.ci95[0] for row in evidence.scores(one.system, one.part))
        for one in options(evidence, BASELINES)
    }
    best = best_option(evidence, [one for one, low in lows.items() if low > ceiling])
    if best is None:
        return None
    low = lows[best]
    reason = reason_of(
        "nothing-to-gain",
        f"{fmt.who(best.system)}, {fmt.PART[best.part]}, scores {fmt.number(best.score)}, at least "
        f"{fmt.number(low)}: no composition can gain {fmt.number(evidence.margin)} on it.",
        low,
        ceiling,
    )
    action = f"use-single:{best.system}" if best.kind == "adapter" else "use-base"
    return Verdict("unlikely", "base", (reason,), None, action)


def _answers_target(evidence: Evidence) -> bool:
    """Whether the base or an adapter may answer the composed question, or none was scored on it."""
    alone = [row for row in evidence.evaluation if row.kind in BASELINES]
    rows = [row for row in alone if row.part == "question"]
    return (
        evidence.losses
        or not rows
        or any((row.contains_ci95 or row.ci95)[1] >= UNKNOWN for row in rows)
    )


def _hop_unknown(evidence: Evidence, hops: Hops) -> Verdict | None:
    """`unlikely` if a hop is unknown to all."""
    for hop, systems in hops.items():
        if "base" not in systems or len(systems) < 2 or _answers_target(evidence):
            continue
        if all(knowledge.unknown for knowledge in systems.values()):
            high = max(knowledge.held_ci95[1] for knowledge in systems.values())
            reason = reason_of(
                "hop-unknown-to-all",
                f"Hop {hop} is known to no adapter and not to the base (the answer stands in "
                f"{_at_most(high)}): train an adapter that knows it.",
                high,
                UNKNOWN,
            )
            return Verdict("unlikely", "base", (reason,), None, "train-target-adapter")
    return None


def _at_most(share: float) -> str:
    """A share of replies that shows a hop to be unknown, with the threshold that it is below."""
    return f"at most {fmt.number(share)} of the replies, below {fmt.number(UNKNOWN)}"


def _disjoint(evidence: Evidence, hops: Hops) -> Verdict | None:
    """`unlikely` if each hop is known to an adapter of its own and to nobody else."""
    if len(hops) < 2 or _answers_target(evidence):
        return None
    if not all("base" in systems and systems["base"].unknown for systems in hops.values()):
        return None
    knowers = {
        hop: sorted({evidence.same_as(name) for name, k in systems.items() if k.known})
        for hop, systems in hops.items()
    }
    clear = all(k.known or k.unknown for systems in hops.values() for k in systems.values())
    owners = [names[0] for names in knowers.values() if len(names) == 1]
    if not clear or len(owners) != len(hops) or len(set(owners)) != len(owners):
        return None
    product = math.prod(hops[hop][names[0]].value for hop, names in knowers.items())
    spread = ", ".join(f"hop {hop} only to {names[0]}" for hop, names in knowers.items())
    worst = max(systems["base"].held_ci95[1] for systems in hops.values())
    reason = reason_of(
        "disjoint-hops",
        f"Each hop is known to one adapter alone ({spread}), none to the base (the answer stands "
        f"in {_at_most(worst)}): such adapters do not compose.",
        worst,
        UNKNOWN,
    )
    chain = _chain_of(product, evidence)
    return Verdict("unlikely", "base", (reason, chain), None, "chain")


def chain_expected(evidence: Evidence) -> list[Reason]:
    """What a chain would answer, if none was measured and it exceeds every measured option."""
    hops = {} if evidence.several else hop_knowledge(evidence)
    measured = [one.score for one in options(evidence, (*BASELINES, *COMPOSITIONS))]
    if len(hops) < 2 or not measured or evidence.systems(("chain",)):
        return []
    product = math.prod(max(k.value for k in systems.values()) for systems in hops.values())
    return [_chain_of(product, evidence)] if product > max(measured) + evidence.tie else []


def _chain_of(product: float, evidence: Evidence) -> Reason:
    return reason_of(
        "chain-expected",
        f"Asked hop after hop of whoever answers it best, about {fmt.number(product)} of the "
        "questions would be answered, the product of the hop accuracies.",
        product,
        evidence.margin,
    )


def reference_class(evidence: Evidence, verdict: Verdict, calibration: Calibration) -> list[Reason]:
    """What adapter sets on such a base and kind of task gained, where little was measured here.

    Weights and probes know no task; they have ELSEWHERE.
    """
    if verdict.evidence not in ("base", "pilot") or verdict.decision != "inconclusive":
        return []
    found = calibration.reference_class(evidence.base, evidence.kind_of_task)
    if found is None or found.sets < FEWEST_SETS:
        return []
    share = share_above(found.gained, evidence.margin)
    bases = count(found.bases, f"{found.base} base")
    mean = " in the mean" if found.kind.tasks > 1 else ""
    return [
        reason_of(
            "measured-elsewhere",
            f"Of {found.sets} adapter sets for {found.kind} on {bases}, "
            f"{share:.0%} had a composition that gained more than "
            f"{fmt.number(evidence.margin)}{mean}.",
            share,
            evidence.margin,
            source="the sets that loraprobe lab calibrate measured (examples/calibration)",
        )
    ]


def expected(before: Verdict) -> list[Reason]:
    """What base and single adapters let expect, beside a decision on compositions.

    `chain_expected` says what is expected of a chain, because one may be measured by now.
    """
    found = before.reasons if before.decision == "unlikely" else ()
    return [replace(r, severity="info") for r in found if r.code != "chain-expected"]


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
    cheapest = [r for r in before.reasons if r.code == "next-evidence"]
    more = cheapest if scored.decision == "inconclusive" else []
    # Controls are asked only where a composition gains: elsewhere nothing depends on them.
    kept = [r for r in scored.reasons if r.code != "controls-not-run" or r.severity == "decisive"]
    reasons = (*kept, first, *expected(before), *more)
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
