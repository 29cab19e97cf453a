"""The verdict when merges or routers were scored: rules of the level `evaluation`.

The decision is about merges and routers. The plain question comes first; if no composition gains
there and one gains step by step, the decision is about that form. A chain of adapters is no
composition of weights: it is the real alternative to one, so it never makes a decision `likely`,
and it is the action where it gains and compositions do not.
"""

from __future__ import annotations

from loraprobe.records import Decision, Reason, Verdict
from loraprobe.verdict import reasons
from loraprobe.verdict.advice import action_for, chain_gain
from loraprobe.verdict.candidates import Candidate, Outcome, candidates
from loraprobe.verdict.evidence import Evidence

ACTION = {"merge": "merge", "router": "route"}
DECISION: dict[Outcome, Decision] = {
    "likely": "likely",
    "open": "inconclusive",
    "unlikely": "unlikely",
}
Form = tuple[Candidate, ...]


def judge_evaluation(evidence: Evidence) -> Verdict:
    """The verdict of the level `evaluation`, without what geometry and coverage add."""
    plain = candidates(evidence, "target")
    steps = candidates(evidence, "cot")
    if not plain and not steps:
        return Verdict("inconclusive", "evaluation", (reasons.no_comparison(),))
    form = _form(plain, steps)
    other = steps if form is plain else plain
    decision, kept_open_by = _decide(form, other)
    best = form[0]
    found = _reasons(evidence, form, other, decision, kept_open_by)
    if decision == "likely":
        action = "step-by-step" if best.part == "cot" else ACTION[best.kind]
        return Verdict(decision, "evaluation", tuple(found), best.system, action)
    action, why = action_for(evidence, best, decision)
    return Verdict(decision, "evaluation", (*found, *why), best.system, action)


def _form(plain: Form, steps: Form) -> Form:
    """The form that the decision is about: step by step only where that alone gains."""
    if not plain or (steps and steps[0].outcome == "likely" and plain[0].outcome != "likely"):
        return steps
    return plain


def _decide(form: Form, other: Form) -> tuple[Decision, str | None]:
    """The best outcome of any composition, and what keeps an `unlikely` open, if anything does.

    Where only lossy compressions failed, the method has not failed ("compression"), and
    a step-by-step form that is undecided keeps the question open as well ("steps"): it may gain.
    """
    decision = DECISION[form[0].outcome]
    if decision == "unlikely" and all(reasons.lossy(c) for c in form):
        return "inconclusive", "compression"
    if decision == "unlikely" and any(c.part == "cot" and c.outcome == "open" for c in other):
        return "inconclusive", "steps"
    return decision, None


def _reasons(
    evidence: Evidence, form: Form, other: Form, decision: Decision, kept_open_by: str | None
) -> list[Reason]:
    best = form[0]
    found = [reasons.gain(best, decision)]
    if other:
        found.append(reasons.other_form(other[0], decisive=kept_open_by == "steps"))
    found.append(reasons.controls(best))
    found += reasons.retention(best)
    lost = [c for c in form if reasons.lossy(c)]
    found += [reasons.compression(c, kept_open_by == "compression") for c in lost]
    chain = chain_gain(evidence)
    if chain:
        found.append(reasons.chain(chain, best))
    return found
