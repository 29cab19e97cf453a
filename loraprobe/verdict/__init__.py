"""The verdict: a pure function of evidence. It uses no torch, no files and no clock.

A structural conflict decides alone. Weights and probes decide nothing. Coverage and single adapters
on the task can decide `unlikely`, a first round of compositions on a few items `unlikely` or
`likely` (see `before_evaluation`). Scored compositions decide by the interval of their gain (see
`evaluated`). The forecast and its probability never change the decision (see `probability`).
`codes` holds the stable codes of reasons.
"""

from __future__ import annotations

import dataclasses
import itertools

from loraprobe.records import DecisiveGain, Reason, Verdict
from loraprobe.verdict import reasons
from loraprobe.verdict.advice import action_of, advise, answers
from loraprobe.verdict.before_evaluation import (
    judge_base,
    of_first_round,
    reference_class,
    undecided,
)
from loraprobe.verdict.calibration import Calibration, read_calibration, shipped
from loraprobe.verdict.codes import effect, reason_of
from loraprobe.verdict.evaluated import candidates, chain_gain, chain_outdoes, decide, decisive_form
from loraprobe.verdict.evidence import BaseShape, Evidence, LibraryChoice
from loraprobe.verdict.geometry import about_geometry
from loraprobe.verdict.items import about_items
from loraprobe.verdict.knowledge import about_familiarity, about_hops
from loraprobe.verdict.next_command import Request, next_command
from loraprobe.verdict.probability import with_forecast, with_probability
from loraprobe.verdict.ranking import alone, best_option


def judge(evidence: Evidence, calibration: Calibration | None = None) -> Verdict:
    """Whether composing works, the evidence for that, the reasons, and what to do.

    calibration: gives the probability; None for the one that ships with the package. The reasons
    that decide come first, then those that limit the decision, then the others.
    """
    if not evidence.compatibility.compatible:
        errors = [i for i in evidence.compatibility.issues if i.severity == "error"]
        told = [f"{i.code}: {i.message}{f' {i.cure}' if i.cure else ''}" for i in errors]
        conflicts = tuple(reason_of("structural-conflict", issue=text) for text in told)
        return Verdict("incompatible", "weights", conflicts, action="fix")
    known = calibration or shipped()
    verdict = with_probability(with_forecast(_ruled(evidence), evidence), evidence, known)
    others = (
        about_hops(evidence),
        about_familiarity(evidence),
        about_geometry(evidence),
        about_items(evidence, verdict),
        reference_class(evidence, verdict, known),
        reasons.chosen_from(evidence.choice),
    )
    found = sorted([*verdict.reasons, *itertools.chain(*others)], key=_place)
    return dataclasses.replace(verdict, reasons=tuple(found), margin=evidence.margin)


def _ruled(evidence: Evidence) -> Verdict:
    """The verdict by the rules of the strongest evidence."""
    level = evidence.rests_on
    if evidence.level == "evaluation" and level == "base":
        return judge_alone(evidence)
    if level not in ("pilot", "evaluation"):
        return judge_base(evidence) if level == "base" else undecided(level)
    found = judge_evaluation(evidence)
    return found if level == "evaluation" else of_first_round(found, evidence)


def judge_alone(evidence: Evidence) -> Verdict:
    """The verdict where no merge and no router was asked: on the base, the adapters and a chain.

    The decision stays about merges and routers: `unlikely` where the base and the adapters show
    that none can gain, else `inconclusive`. The action is the best of what was asked, a chain where
    it is shown to gain. A second decisive reason says what of that is open.
    """
    known, chain, gain = judge_base(evidence), chain_gain(evidence), None
    found, action, outcome = list(known.reasons), known.action, "unlikely"
    if known.decision != "unlikely":
        found = [reason_of("compositions-not-asked", decisive=True)]
    if chain is not None:
        own = chain.gain
        gain = DecisiveGain(
            "chain", chain.part, chain.against, own.value, (own.low, own.high), own.n
        )
        outcome = own.outcome if chain.enough == "likely" else "open"
        found.append(reasons.chain(chain, None, own.outcome == "open"))
        if chain.enough == "open":
            found.append(reasons.few_items(own.n, own.clusters, decisive=True))
    if outcome == "likely":
        action = "chain"
    elif known.decision != "unlikely" or (action == "chain" and chain is not None):
        best = best_option(evidence, alone(evidence))
        shown = best is not None and answers(evidence, best)
        action = action_of(best) if best and shown else "gather-evidence"
    system = None if gain is None else gain.system
    return Verdict(known.decision, "base", tuple(found), system, action, gain=gain)


def _place(reason: Reason) -> tuple[int, int]:
    """The place of a reason: first what decides, then what limits it, then by its effect."""
    return ["decisive", "warning", "info"].index(reason.severity), effect(reason.code)


def judge_evaluation(evidence: Evidence) -> Verdict:
    """The verdict on scored compositions, without the reasons of geometry and coverage.

    Where the intervals leave it open, what base and single adapters decide holds
    (`before_evaluation`), unless a composition measured a gain above the margin, and a chain that
    outdoes everything decides too.
    """
    plain, steps = candidates(evidence, "question"), candidates(evidence, "steps")
    if not plain and not steps:
        return Verdict("inconclusive", "evaluation", (reason_of("no-comparison"),))
    form = decisive_form(evidence, plain, steps)
    other = steps if form is plain else plain
    decision, compressed = decide(form)
    known = judge_base(evidence)
    chain, gained = chain_gain(evidence), form[0].gain.value > evidence.margin
    by_base = decision == "inconclusive" and known.decision == "unlikely" and not gained
    composed = (*plain, *steps)
    by_chain = decision == "inconclusive" and not by_base and chain_outdoes(evidence, composed)
    decision = "unlikely" if by_base or by_chain else decision
    advice = advise(evidence, composed, form[0], decision, by_chain)
    best = advice.uses if advice.uses and advice.uses.outcome == form[0].outcome else form[0]
    found = [*known.reasons] if by_base else []
    if chain:
        found.append(reasons.chain(chain, best, by_chain))
    found.append(reasons.gain(best, decision))
    if best.binds(best.enough):
        found.append(reasons.few_items(best.gain.n, best.gain.clusters, decisive=True))
    if best.checked is not None and best.binds(best.confirmed):
        told = best.checked.low, best.checked.threshold
        found.append(reason_of("answers-normalised", *told, decisive=True, gain=best.checked))
    if other:
        found.append(reasons.other_form(other[0]))
    found.append(reasons.controls(best))
    asked = evidence.retention
    found += [reasons.retention(best, task, share, asked) for task, share in best.kept.items()]
    found += [reasons.compression(c, compressed) for c in form if c.lossy]
    found += advice.reasons
    if known.decision == "unlikely" and not by_base and decision == "inconclusive":
        found += [dataclasses.replace(reason, severity="info") for reason in known.reasons]
    own, system = best.gain, advice.uses.system if advice.uses else best.system
    gain = DecisiveGain(best.system, best.part, best.against, own.value, (own.low, own.high), own.n)
    return Verdict(decision, "evaluation", tuple(found), system, advice.action, gain=gain)
