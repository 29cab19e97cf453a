"""The action of a verdict, from what was measured.

A composition that is `likely` is used as it was measured. For another decision all options are
compared (`ranking`): base, single adapters, adapters switched by task, the best composition and the
chain, in both forms of the question. The first of these that holds is the action: to route by
prompt, if the adapters together know more than any option shows and no such router was measured;
more evidence, if nothing is decided; the best option, if it is shown to answer more than base and
guessing do; the base, if every composition is shown to be worse; else what the commonest cause of
failure (attribution) calls for.
"""

from __future__ import annotations

from collections.abc import Sequence

from loraprobe.formatting import count, listing
from loraprobe.records import FORMS, Reason
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.causes import BY_HOP, about_cause, commonest_cause, cure
from loraprobe.verdict.codes import reason_of
from loraprobe.verdict.evaluated import Candidate, chain_gain
from loraprobe.verdict.evidence import Evidence
from loraprobe.verdict.ranking import (
    SWITCH,
    Option,
    alone,
    best_option,
    not_told_apart,
    option,
    options,
)

PER_PROMPT = "per=sequence"  # the option of routers that choose one adapter a prompt
ROUTER = f"centroid:{PER_PROMPT}"


def action_of(kind: str, part: str, system: str) -> str:
    """The action that uses an option."""
    if kind in ("merge", "router") and part == "steps":
        return "step-by-step"
    return {
        "base": "use-base",
        "adapter": f"use-single:{system}",
        "switch": SWITCH,
        "merge": "merge",
        "router": "route",
        "chain": "chain",
    }[kind]


def action_for(evidence: Evidence, best: Candidate, decision: str) -> tuple[str, list[Reason]]:
    """The action of a decision that is not `likely`, and its reasons."""
    cause = commonest_cause(evidence, best.system)
    chain = chain_gain(evidence)
    measured = measured_options(evidence, best, chain)
    chosen = best_option(evidence, measured)
    steps_decide = cause is not None and cause.name == "step_by_step" and best.part == "steps"
    unadvised = [] if steps_decide else about_cause(cause, best.system)
    if chosen is not None and chosen.kind == "chain" and chain and chain.gain.outcome == "likely":
        return "chain", about_cause(cause, best.system, BY_HOP)
    together = complement(evidence, chosen)
    if together is not None:
        return "route", [together, *unadvised]
    if decision == "inconclusive" and not _single_of_library(evidence, chosen):
        return "gather-evidence", unadvised
    ceiling = _base_at_ceiling(evidence)
    if ceiling is not None:
        return "use-base", [_why(evidence, ceiling, best), *unadvised]
    if chosen is not None and answers(evidence, chosen):
        return _use(evidence, chosen, best, measured, unadvised)
    if best.gain.high < 0 and evidence.kind(best.against) == "base":
        told = reason_of("base-is-better", best.gain.high, 0.0, best=best)
        return "use-base", [told, *unadvised]
    if cause is None or evidence.several:
        return "train-target-adapter", []
    action, advice = cure(evidence, best.system, cause.name)
    return action, about_cause(cause, best.system, advice)


def complement(evidence: Evidence, best: Option | None) -> Reason | None:
    """That the adapters together answer what none of them and no measured option answers.

    Somebody who chose the right adapter for every item would then score more, and a router that
    chooses by prompt can approach that. best: the best measured option. The right choice of adapter
    has to be shown to score more than it, and more than adapters that are right independently of
    each other. None if a router that chooses by prompt was measured, because it has shown then what
    it can do.
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
    if not found:
        return None
    top = max(found, key=lambda row: (row.value, row.part))
    names = sorted({evidence.same_as(name) for name in top.adapters})
    return reason_of(
        "adapters-complement",
        top.value,
        best.score,
        names=listing(names),
        form=fmt.PART[top.part],
        right=round(top.value * top.n),
        questions=count(top.n, "question"),
        alone=max(evidence.mean(name, top.part) or 0.0 for name in names),
        router=ROUTER,
    )


def _single_of_library(evidence: Evidence, chosen: Option | None) -> bool:
    """Whether one adapter of a library is the best option, and shown to answer something.

    Somebody with a library asks what of it to use, so that is an answer while it is open whether a
    composition gains a little more.
    """
    if evidence.choice is None or chosen is None:
        return False
    return chosen.kind == "adapter" and answers(evidence, chosen)


def measured_options(
    evidence: Evidence, best: Candidate, chain: Candidate | None
) -> tuple[Option, ...]:
    """What may be used: base, adapters, the best composition, and a chain that is shown to gain.

    A composition that is shown to lose a skill is no option.
    """
    found = alone(evidence)
    composed = [best] if best.retains != "unlikely" else []
    if chain is not None and chain.gain.low > evidence.tie:
        composed.append(chain)
    for one in composed:
        measured = option(evidence, one.system, one.part)
        found += [measured] if measured is not None else []
    return tuple(found)


def answers(evidence: Evidence, one: Option) -> bool:
    """Whether an option is shown to answer more than the base and than guessing do.

    The base is one only if it answers more when asked step by step.
    """
    if one.kind == "base" and one.part == "question":
        return False
    forms = {"question", one.part} if one.kind != "base" else {"question"}
    base = [evidence.mean(name, part) for name in evidence.systems(("base",)) for part in forms]
    needed = max((score for score in (*base, evidence.guessing) if score is not None), default=0.0)
    return one.low > needed + evidence.tie


def _use(
    evidence: Evidence,
    chosen: Option,
    best: Candidate,
    measured: Sequence[Option],
    unadvised: list[Reason],
) -> tuple[str, list[Reason]]:
    """The action that uses the best measured option, and why."""
    if chosen.kind == "switch":
        return _keep_apart(evidence, best)
    told = [_why(evidence, chosen, best)]
    others = not_told_apart(evidence, chosen, measured)
    if others:
        top = max(others, key=lambda one: (one.score, one.system))
        gap = top.score - chosen.score
        told.append(reason_of("not-told-apart", gap, 0.0, other=top, chosen=chosen))
    return action_of(chosen.kind, chosen.part, chosen.system), [*told, *unadvised]


def _why(evidence: Evidence, chosen: Option, best: Candidate) -> Reason:
    """Why the best option is used, which is no switch of adapters."""
    code, value, threshold = {
        "base": ("base-suffices", chosen.low, None),
        "adapter": ("single-suffices", chosen.score, evidence.tie),
    }.get(chosen.kind, ("best-measured", chosen.score, evidence.margin))
    own = abs(evidence.mean(best.system, best.part) or 0.0)
    where = ", on every task" if evidence.several else ""
    return reason_of(code, value, threshold, chosen=chosen, best=best, own=own, everywhere=where)


def _keep_apart(evidence: Evidence, best: Candidate) -> tuple[str, list[Reason]]:
    """Several skills that one composition does not keep: route, or switch adapters by task.

    To switch adapters helps only if on every task some adapter is shown to differ from the base.
    """
    if not evidence.systems(("router",)):
        return "route", []
    learned = all(share is not None for share in best.kept.values())
    action = SWITCH if learned else "train-target-adapter"
    what = "load each task's own adapter" if learned else "train one adapter on all tasks"
    return action, [reason_of("switch-adapters", what=what)]


def _base_at_ceiling(evidence: Evidence) -> Option | None:
    """The base, if no system can exceed it by more than a tie, since no score exceeds 1."""
    if evidence.losses:
        return None
    sure = [one for one in options(evidence, ("base",)) if one.low > 1 - evidence.tie]
    return best_option(evidence, sure)
