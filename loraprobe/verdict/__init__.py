"""The verdict: a pure function of evidence. It uses no torch, no files and no clock.

A structural conflict decides alone. Weights and probes decide nothing. Coverage and single adapters
on the task can decide `unlikely` (see `before_evaluation`). Scored compositions decide by the
interval of their gain (see `evaluated`). The forecast and its probability never change the decision
(see `probability`).

The stable codes of reasons:

structural-conflict        the adapters, or adapters and base, cannot be composed as they are
weights-do-not-decide      only weights were examined
probes-do-not-decide       only probes were asked
base-does-not-decide       coverage and single adapters do not decide
next-evidence              the cheapest further evidence
nothing-to-gain            base or a single adapter is at the ceiling
hop-unknown-to-all         no adapter knows a hop, and the base does not know it
disjoint-hops              one-hop adapters over names unfamiliar to the base
chain-expected             the accuracy of a chain that the hop accuracies predict
gain-beyond-margin         the best composition's lower bound exceeds the margin
gain-below-margin          every composition's upper bound lies below the margin
gain-undecided             the interval holds the margin
gain-with-reservation      a gain that controls or retention do not confirm
no-comparison              compositions were scored without base and single adapters
plain-form                 the gain on the plain question, if the decision is about steps
step-by-step-form          the gain step by step, if the decision is about the plain question
partner-adds-nothing       a control is not shown to be beaten
controls-beaten            every control is beaten
controls-not-run           no control was scored
retention-kept, retention-lost, retention-undecided, retention-undefined
                           one task's retention against --retention
compression-lost           a composition lost more than a tenth of its delta to its rank
chain-gains, chain-fails, chain-undecided
                           the gain of each hop by its own adapter
single-suffices            the best single adapter is the better choice
base-suffices              the base alone is at the ceiling
switch-adapters            no composition keeps all skills, each adapter keeps its own
base-is-better             every composition is shown to be worse than the base alone
mostly-step-by-step, mostly-unknown, mostly-interference, mostly-not-composed
                           the commonest cause of failure, with its cure
hop-known, hop-in-doubt, hop-unknown
                           which system answers a hop best
familiar-names, unfamiliar-names
                           whether the base tells the names from made-up ones
probes-too-few             too few answers of the adapters could be judged
probes-familiar, probes-mixed, probes-unfamiliar
                           the share of the adapters' answers that the base would give itself
forecast                   the gain if the adapters' effects on the next token simply added
probability-measured-on    the probability, its prior, and the errors of such probabilities
outside-calibration        why there is no probability here
measured-elsewhere         what measured compositions of others gained
template-matters           the chat template changes many answers of the single adapters
few-items                  so few items that only a large difference can be decided
hops-missing, steps-missing
                           the items have no `hops`, or no `cot_prompt`: what that leaves open
norm-disparity, opposed-updates, nearly-equal-updates, large-update, factor-averaging-differs,
shared-initialisation      warnings of geometry
unrelated-updates          no pair is opposed or nearly equal
"""

from __future__ import annotations

import dataclasses

from loraprobe.records import DecisiveGain, Issue, Reason, Verdict
from loraprobe.verdict import reasons
from loraprobe.verdict.advice import action_for
from loraprobe.verdict.before_evaluation import judge_base, judge_probes, judge_weights
from loraprobe.verdict.calibration import Calibration, read_calibration, shipped
from loraprobe.verdict.candidates import candidates, chain_gain
from loraprobe.verdict.evaluated import decide, decisive_form
from loraprobe.verdict.evidence import Evidence
from loraprobe.verdict.geometry import about_geometry
from loraprobe.verdict.items import about_items
from loraprobe.verdict.knowledge import about_familiarity, about_hops, hop_knowledge
from loraprobe.verdict.next_command import Request, merge_and_eval_command, next_command
from loraprobe.verdict.probability import with_probability

__all__ = [
    "Evidence",
    "Request",
    "judge",
    "judge_evaluation",
    "merge_and_eval_command",
    "next_command",
    "read_calibration",
]

ACTION = {"merge": "merge", "router": "route"}
# Codes by how much they change what a person does; the others follow in the order of the rules.
EFFECT = (
    "partner-adds-nothing",
    "retention-lost",
    "retention-undecided",
    "few-items",
    "chain-gains",
    "single-suffices",
    "base-suffices",
    "base-is-better",
    "mostly-step-by-step",
    "mostly-unknown",
    "mostly-interference",
    "mostly-not-composed",
    "nearly-equal-updates",
    "norm-disparity",
    "opposed-updates",
    "large-update",
    "steps-missing",
    "hops-missing",
    "step-by-step-form",
    "plain-form",
    "shared-initialisation",
    "unrelated-updates",
)


def judge(evidence: Evidence, calibration: Calibration | None = None) -> Verdict:
    """Whether composing works, the evidence for that, the reasons, and what to do.

    calibration: gives the probability; None for the one that ships with the package. The reasons
    that decide come first, then those that limit the decision, then the others.
    """
    if not evidence.compatibility.compatible:
        errors = [i for i in evidence.compatibility.issues if i.severity == "error"]
        conflicts = tuple(_conflict(issue) for issue in errors)
        return Verdict("incompatible", "weights", conflicts, action="fix")
    rules = {
        "weights": judge_weights,
        "probes": judge_probes,
        "base": judge_base,
        "evaluation": judge_evaluation,
    }
    verdict = rules[evidence.rests_on](evidence)
    verdict, forecast = with_probability(verdict, evidence, calibration or shipped())
    others = [] if evidence.several else about_hops(hop_knowledge(evidence))
    others += about_familiarity(evidence) + about_geometry(evidence.diagnostics, evidence.balanced)
    others += about_items(evidence, verdict)
    found = (*verdict.reasons, *forecast, *others)
    return dataclasses.replace(
        verdict, reasons=tuple(sorted(found, key=effect)), margin=evidence.margin
    )


def effect(reason: Reason) -> tuple[int, int]:
    """The place of a reason: first what decides, then what limits it, then by EFFECT."""
    rank = EFFECT.index(reason.code) if reason.code in EFFECT else len(EFFECT)
    return ["decisive", "warning", "info"].index(reason.severity), rank


def judge_evaluation(evidence: Evidence) -> Verdict:
    """The verdict of the level `evaluation`, without the reasons of geometry and coverage."""
    plain, steps = candidates(evidence, "question"), candidates(evidence, "steps")
    if not plain and not steps:
        return Verdict("inconclusive", "evaluation", (reasons.no_comparison(),))
    form = decisive_form(plain, steps)
    other = steps if form is plain else plain
    decision, kept_open_by = decide(form, other)
    best = form[0]
    found = [reasons.gain(best, decision)]
    if other:
        found.append(reasons.other_form(other[0], decisive=kept_open_by == "steps"))
    found += [reasons.controls(best), *reasons.retention(best)]
    found += [reasons.compression(c, kept_open_by == "compression") for c in form if c.lossy]
    chain = chain_gain(evidence)
    if chain:
        found.append(reasons.chain(chain, best))
    if decision == "likely":
        action = "step-by-step" if best.part == "steps" else ACTION[best.kind]
    else:
        action, why = action_for(evidence, best, decision)
        found += why
    gain = DecisiveGain(
        best.system, best.part, best.against, best.difference, (best.low, best.high), best.n
    )
    return Verdict(decision, "evaluation", tuple(found), best.system, action, gain=gain)


def _conflict(issue: Issue) -> Reason:
    cure = f" {issue.cure}" if issue.cure else ""
    return Reason(
        "structural-conflict",
        f"{issue.code}: {issue.message}{cure}",
        source="compatibility decides alone: adapters that do not fit are not composed",
        severity="decisive",
    )
