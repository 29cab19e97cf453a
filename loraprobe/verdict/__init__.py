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
from loraprobe.verdict.advice import action_for, action_of
from loraprobe.verdict.before_evaluation import (
    chain_expected,
    expected,
    judge_base,
    judge_pilot,
    reference_class,
    undecided,
)
from loraprobe.verdict.calibration import Calibration, read_calibration, shipped
from loraprobe.verdict.codes import effect, reason_of
from loraprobe.verdict.evaluated import candidates, chain_gain, decide, decisive_form
from loraprobe.verdict.evidence import BaseShape, Evidence, LibraryChoice
from loraprobe.verdict.geometry import about_geometry
from loraprobe.verdict.items import about_items
from loraprobe.verdict.knowledge import about_familiarity, about_hops
from loraprobe.verdict.next_command import Request, next_command
from loraprobe.verdict.probability import with_forecast, with_probability


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
        chain_expected(evidence, verdict),
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
    if level == "evaluation":
        found = judge_evaluation(evidence)
        told = expected(judge_base(evidence)) if found.decision == "inconclusive" else []
        return dataclasses.replace(found, reasons=(*found.reasons, *told))
    if level == "pilot":
        return judge_pilot(judge_evaluation(evidence), judge_base(evidence), evidence)
    return judge_base(evidence) if level == "base" else undecided(level)


def _place(reason: Reason) -> tuple[int, int]:
    """The place of a reason: first what decides, then what limits it, then by its effect."""
    return ["decisive", "warning", "info"].index(reason.severity), effect(reason.code)


def judge_evaluation(evidence: Evidence) -> Verdict:
    """The verdict of the level `evaluation`, without the reasons of geometry and coverage."""
    plain, steps = candidates(evidence, "question"), candidates(evidence, "steps")
    if not plain and not steps:
        return Verdict("inconclusive", "evaluation", (reason_of("no-comparison"),))
    form = decisive_form(plain, steps)
    other = steps if form is plain else plain
    decision, compressed = decide(form)
    best = form[0]
    found = [reasons.gain(best, decision)]
    if best.binds(best.enough):
        found.append(reasons.few_items(best.gain.n, best.gain.clusters, decisive=True))
    if other:
        found.append(reasons.other_form(other[0]))
    found.append(reasons.controls(best))
    asked = evidence.retention
    found += [reasons.retention(best, task, share, asked) for task, share in best.kept.items()]
    found += [reasons.compression(c, compressed) for c in form if c.lossy]
    chain = chain_gain(evidence)
    if chain:
        found.append(reasons.chain(chain, best))
    if decision == "likely":
        action = action_of(best.kind, best.part, best.system)
    else:
        action, why = action_for(evidence, best, decision)
        found += why
    own = best.gain
    gain = DecisiveGain(best.system, best.part, best.against, own.value, (own.low, own.high), own.n)
    return Verdict(decision, "evaluation", tuple(found), best.system, action, gain=gain)
