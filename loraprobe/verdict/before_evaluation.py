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

What a system knows and what is unknown to it is defined in `knowledge`. None of these levels gives
`likely`: whether the pieces compose has to be measured.

The same rules decide where scored compositions leave it open, unless these measured a gain above
the margin: what compositions do outranks what is expected of them. On a *first round* of
compositions, on a few items of each task, the rules of an evaluation hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from loraprobe.defaults import FEWEST_SETS, MARGIN, UNKNOWN
from loraprobe.formatting import count, listing
from loraprobe.records import BASELINES, EvidenceLevel, Reason, Verdict
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.calibration import Calibration, share_above
from loraprobe.verdict.codes import reason_of
from loraprobe.verdict.evidence import COMPOSITIONS, Evidence
from loraprobe.verdict.knowledge import (
    Hops,
    held_at_most,
    hop_knowledge,
    is_known,
    is_unknown,
)
from loraprobe.verdict.ranking import best_option, options

# What compositions of others gained, which is all that is known before a question is asked.
ELSEWHERE = reason_of(
    "measured-elsewhere",
    0.19,
    source="computed from the data of arXiv 2602.12323: LoraHub, weights searched on 100 examples, "
    "46 tasks",
    sets="603 compositions of 5 to 30 community adapters on Llama-3.1-8B, 19 %",
    margin=MARGIN,
    over=" over base and singles (arXiv 2602.12323)",
)
# Why a level decides nothing, the cheapest evidence that may, and why it is the cheapest.
OPEN: dict[EvidenceLevel, tuple[str, str, str]] = {
    "weights": (
        "weights-do-not-decide",
        "--probe auto asks the base without a task file",
        "cost: no composition is built or scored",
    ),
    "probes": (
        "probes-do-not-decide",
        "a task file with questions that need both adapters",
        "a verdict needs a question with a known answer",
    ),
    "base": (
        "base-does-not-decide",
        "merge-and-eval scores the compositions themselves",
        "coverage cannot see whether known pieces compose",
    ),
}


def undecided(level: EvidenceLevel) -> Verdict:
    """Inconclusive at this level, with the cheapest next evidence."""
    code, what, source = OPEN[level]
    reasons = [reason_of(code), reason_of("next-evidence", source=source, what=what)]
    return Verdict("inconclusive", level, (*reasons, *([] if level == "base" else [ELSEWHERE])))


def judge_base(evidence: Evidence) -> Verdict:
    """Coverage and single adapters on the task: unlikely in three cases, else inconclusive."""
    found = nothing_to_gain(evidence)
    if found is None and not _answers_target(evidence):
        hops = hop_knowledge(evidence)
        found = _hop_unknown(hops) or _disjoint(evidence, hops)
    return found or undecided("base")


def nothing_to_gain(evidence: Evidence) -> Verdict | None:
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
    who, margin = fmt.who(best.system), evidence.margin
    reason = reason_of("nothing-to-gain", low, ceiling, who=who, best=best, margin=margin)
    action = f"use-single:{best.system}" if best.kind == "adapter" else "use-base"
    return Verdict("unlikely", "base", (reason,), None, action)


def _answers_target(evidence: Evidence) -> bool:
    """Whether the base or an adapter may answer the composed question, or none was scored on it."""
    asked = [s for s in evidence.evaluation if s.kind in BASELINES and s.part == "question"]
    return evidence.losses or not all(map(is_unknown, asked)) or not asked


def _hop_unknown(hops: Hops) -> Verdict | None:
    """`unlikely` if a hop is unknown to all."""
    for hop, systems in hops.items():
        scores = systems.values()
        if "base" in systems and len(systems) > 1 and all(map(is_unknown, scores)):
            high = max(map(held_at_most, scores))
            reason = reason_of("hop-unknown-to-all", high, UNKNOWN, hop=hop)
            return Verdict("unlikely", "base", (reason,), None, "train-target-adapter")
    return None


def _disjoint(evidence: Evidence, hops: Hops) -> Verdict | None:
    """`unlikely` if each hop is known to an adapter of its own and to nobody else."""
    if len(hops) < 2:
        return None
    if not all("base" in systems and is_unknown(systems["base"]) for systems in hops.values()):
        return None
    knowers = {
        hop: sorted({evidence.same_as(name) for name, score in systems.items() if is_known(score)})
        for hop, systems in hops.items()
    }
    scores = [score for systems in hops.values() for score in systems.values()]
    clear = all(is_known(score) or is_unknown(score) for score in scores)
    owners = [names[0] for names in knowers.values() if len(names) == 1]
    if not clear or len(owners) != len(hops) or len(set(owners)) != len(owners):
        return None
    spread = ", ".join(f"hop {hop} only to {names[0]}" for hop, names in knowers.items())
    worst = max(held_at_most(systems["base"]) for systems in hops.values())
    reason = reason_of("disjoint-hops", worst, UNKNOWN, spread=spread)
    return Verdict("unlikely", "base", (reason,), None, "chain")


def reference_class(
    evidence: Evidence, verdict: Verdict, calibration: Calibration
) -> Iterator[Reason]:
    """What adapter sets on such a base and kind of task gained, where little was measured here.

    Weights and probes know no task; they have ELSEWHERE.
    """
    if verdict.evidence not in ("base", "pilot") or verdict.decision != "inconclusive":
        return
    found = calibration.reference_class(evidence.base, evidence.kind_of_task)
    if found is None or found.sets < FEWEST_SETS:
        return
    share = share_above(found.gained, evidence.margin)
    bases = count(found.bases, f"{found.base} base")
    yield reason_of(
        "measured-elsewhere",
        share,
        evidence.margin,
        source="the sets that loraprobe lab calibrate measured (examples/calibration)",
        sets=f"{found.sets} adapter sets for {found} on {bases}, {share:.0%} had a "
        "composition that",
        margin=evidence.margin,
        over=" in the mean" if found.tasks > 1 else "",
    )


def of_first_round(found: Verdict, evidence: Evidence) -> Verdict:
    """A verdict on scored compositions, as that of a first round on a few items."""
    # Controls are asked only where a composition gains: elsewhere nothing depends on them.
    kept = [r for r in found.reasons if r.code != "controls-not-run" or r.severity == "decisive"]
    systems = evidence.systems(COMPOSITIONS)
    items = max(row.n for row in evidence.evaluation if row.system in systems)
    asked = count(items, "item") + (" of each task" if evidence.several else "")
    kept.append(reason_of("first-round", float(items), systems=listing(systems), items=asked))
    if found.decision == "inconclusive":
        kept += [r for r in undecided("base").reasons if r.code == "next-evidence"]
    return replace(found, evidence="pilot", reasons=tuple(kept))
