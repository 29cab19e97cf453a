"""The verdict: a pure function of evidence. No torch, no files, no clock.

A structural conflict decides alone. Weights and probes never decide. Coverage and single adapters
on the task can say `unlikely` (see `before_evaluation`). Scored compositions decide by the
interval of their gain (see `evaluated` and `candidates`). The forecast and its probability go with
the decision and never change it (see `probability`).

The decision is about merges and routers; a chain of adapters is what to do instead.

Codes of reasons (stable), by what they say:

structural-conflict        adapters, or adapters and base, cannot be composed as they stand
weights-do-not-decide      only weights were examined
probes-do-not-decide       only probes were asked
base-does-not-decide       coverage and single adapters leave it open
next-evidence              the cheapest evidence that would tell more
nothing-to-gain            base or a single adapter is at the ceiling
hop-unknown-to-all         a step that no adapter and not the base knows
disjoint-hops              one-hop adapters over names unfamiliar to the base
chain-expected             what asking hop after hop would give
gain-beyond-margin         the best composition's lower bound exceeds the margin
gain-below-margin          every composition's upper bound lies below the margin
gain-undecided             the interval holds the margin
gain-with-reservation      a gain that controls or retention do not confirm
no-comparison              compositions were scored without what they have to beat
plain-form                 how it is when asked plainly, for a step-by-step decision
step-by-step-form          how it is when asked step by step, for a plain decision
partner-adds-nothing       a control is not shown to be beaten
controls-beaten            every control is beaten
controls-not-run           no control was scored
retention-kept, retention-lost, retention-undecided, retention-undefined
                           one task's retention against --retention
compression-lost           more than a tenth of the delta was lost to the rank
chain-gains, chain-fails, chain-undecided
                           hop after hop, each by its own adapter
single-suffices            the best single adapter is the better choice
base-suffices              the base alone is at the ceiling
switch-adapters            no composition keeps all skills, each adapter keeps its own
mostly-step-by-step, mostly-unknown, mostly-interference, mostly-not-composed
                           the commonest cause of failure, with its cure
hop-known, hop-in-doubt, hop-unknown
                           who knows a hop
familiar-names, unfamiliar-names
                           whether the base tells the names from made-up ones
probes-too-few             hardly any answer of the adapters could be judged
probes-familiar, probes-mixed, probes-unfamiliar
                           how much of the adapters' answers the base would say itself
forecast                   what compositions would gain if the adapters' effects simply added
probability-measured-on    the probability, its prior, and how good such probabilities were, on what
outside-calibration        why there is no probability here
norm-disparity, opposed-updates, nearly-equal-updates, large-update, factor-averaging-differs,
shared-initialisation      warnings of geometry
"""

from __future__ import annotations

import dataclasses

from loraprobe.records import Issue, Reason, Verdict
from loraprobe.verdict.before_evaluation import judge_base, judge_probes, judge_weights
from loraprobe.verdict.calibration import Calibration, read_calibration, shipped
from loraprobe.verdict.evaluated import judge_evaluation
from loraprobe.verdict.evidence import Evidence
from loraprobe.verdict.geometry import about_geometry
from loraprobe.verdict.knowledge import about_familiarity, about_hops, hop_knowledge
from loraprobe.verdict.probability import with_probability

__all__ = ["Evidence", "judge", "read_calibration"]

_RULES = {
    "weights": judge_weights,
    "probes": judge_probes,
    "base": judge_base,
    "evaluation": judge_evaluation,
}


def judge(evidence: Evidence, calibration: Calibration | None = None) -> Verdict:
    """Whether composing works, on what that rests, why, and what to do.

    calibration: where the probability comes from; None for the one that ships with the package.
    The reasons come in order of weight: those that decide, then those that limit the decision, then
    the others.
    """
    if not evidence.compatibility.compatible:
        errors = [i for i in evidence.compatibility.issues if i.severity == "error"]
        return Verdict("incompatible", "weights", tuple(_conflict(issue) for issue in errors))
    verdict = _RULES[evidence.rests_on](evidence)
    verdict, told = with_probability(verdict, evidence, calibration or shipped())
    others = [] if evidence.several else about_hops(hop_knowledge(evidence))
    others += about_familiarity(evidence) + about_geometry(evidence.diagnostics, evidence.balanced)
    weight = {"decisive": 0, "warning": 1, "info": 2}
    reasons = sorted((*verdict.reasons, *told, *others), key=lambda reason: weight[reason.severity])
    return dataclasses.replace(verdict, reasons=tuple(reasons))


def _conflict(issue: Issue) -> Reason:
    cure = f" {issue.cure}" if issue.cure else ""
    return Reason(
        "structural-conflict",
        f"{issue.code}: {issue.message}{cure}",
        source="compatibility decides alone: what does not fit is not composed",
        severity="decisive",
    )
