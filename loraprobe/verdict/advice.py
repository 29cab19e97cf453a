"""The action of a decision that is not `likely`, from what was measured.

The first of these that holds: a chain that is shown to gain; more evidence, if nothing is decided;
the base, if it is at the ceiling; the best single adapter, if it is shown to beat the base by more
than the margin and no composition gains; the base, if every composition is shown to be worse than
it; for several tasks a router or each adapter for its own task; else what the commonest cause of
failure (attribution) calls for.
"""

from __future__ import annotations

from dataclasses import dataclass

from loraprobe.formatting import count
from loraprobe.records import Reason
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.candidates import chain_gain
from loraprobe.verdict.evaluated import Candidate
from loraprobe.verdict.evidence import Evidence

CAUSES = (
    "step_by_step",
    "said_otherwise",
    "unknown",
    "cut_off",
    "interference",
    "not_composed",
)
FAILS = {  # what a wrong answer of each cause shows
    "step_by_step": "are right when asked step by step",
    "said_otherwise": "hold the right answer in other words",
    "unknown": "need a hop that no adapter and not the base knows",
    "cut_off": "ended at the limit of tokens",
    "interference": "lose a hop that one adapter alone knows",
    "not_composed": "keep every hop and still fail",
}


def action_for(evidence: Evidence, best: Candidate, decision: str) -> tuple[str, list[Reason]]:
    """The action of a decision that is not `likely`, and its reasons."""
    cause = _commonest_cause(evidence, best.system)
    chain = chain_gain(evidence)
    if chain is not None and chain.gains == "likely":
        return "chain", _about_cause(cause, best.system, "run each hop by its own adapter")
    unadvised = _about_cause(cause, best.system)
    if decision == "inconclusive":
        return "gather-evidence", unadvised
    if _base_at_ceiling(evidence):
        return "use-base", [_base_suffices(evidence), *unadvised]
    single = best_single(evidence)
    if single is not None and best.gains == "unlikely":
        return f"use-single:{single[0]}", [_single_suffices(single, best, evidence), *unadvised]
    if best.high < 0 and evidence.kind(best.against) == "base":
        return "use-base", [_base_is_better(best), *unadvised]
    if evidence.several:
        return _keep_apart(evidence, best)
    if cause is None:
        return "train-target-adapter", []
    action, advice = _cure(evidence, best.system, cause.name)
    return action, _about_cause(cause, best.system, advice)


def _keep_apart(evidence: Evidence, best: Candidate) -> tuple[str, list[Reason]]:
    """Several skills that one composition does not keep: route, or switch adapters by task.

    To switch adapters helps only if on every task some adapter is shown to differ from the base.
    """
    if not evidence.systems(("router",)):
        return "route", []
    learned = all(kept.value is not None for kept in best.kept)
    action = "switch-adapters" if learned else "train-target-adapter"
    what = "load each task's own adapter" if learned else "train one adapter on all tasks"
    text = f"No merge and no router keeps all skills: {what}."
    return action, [Reason("switch-adapters", text, source=fmt.RETENTION)]


def best_single(evidence: Evidence) -> tuple[str, str, float] | None:
    """(name, part, score) of the single adapter that is shown to beat the base by the margin.

    Its lower bound has to exceed the base's score on the plain question and on its own form by
    the margin. None if no single adapter does.
    """
    found = []
    for part in ("question", "steps"):
        base = [
            evidence.mean(name, p) or 0.0
            for name in evidence.systems(("base",))
            for p in ("question", part)
        ]
        needed = max(base, default=0.0) + evidence.margin
        for name in evidence.systems(("adapter",), part):
            low, mean = evidence.lower(name, part), evidence.mean(name, part)
            if low is not None and mean is not None and low > needed:
                found.append((name, part, mean))
    return min(found, key=lambda f: (-f[2], f[1] != "question", f[0]), default=None)


def _base_at_ceiling(evidence: Evidence) -> bool:
    """Whether no system can exceed the base by the margin, since no score exceeds 1."""
    lows = [evidence.lower(name, "question") for name in evidence.systems(("base",), "question")]
    return any(low is not None and low > 1 - evidence.margin for low in lows)


@dataclass(frozen=True)
class Cause:
    """The commonest cause of a system's wrong answers: how many it has, of how many."""

    name: str
    count: int
    wrong: int
    items: int


def _commonest_cause(evidence: Evidence, system: str) -> Cause | None:
    """None where no wrong answer was attributed to a cause."""
    rows = [row for row in evidence.attribution if row.system == system]
    counts = {cause: sum(getattr(row, cause) for row in rows) for cause in CAUSES}
    wrong = sum(counts.values())
    if not wrong:
        return None
    cause = max(CAUSES, key=lambda c: counts[c])
    return Cause(cause, counts[cause], wrong, wrong + sum(row.solved for row in rows))


def _about_cause(cause: Cause | None, system: str, advice: str = "") -> list[Reason]:
    """The cause in one line, with the advice that follows from it if that is the action."""
    if cause is None:
        return []
    what = f"Of {count(cause.wrong, 'wrong answer')} of {system} {cause.count}"
    return [
        Reason(
            "mostly-" + cause.name.replace("_", "-"),
            f"{what} {FAILS[cause.name]}{': ' + advice if advice else ''}.",
            cause.count / cause.items,
            source="each item counts under the first cause that fits",
        )
    ]


def _cure(evidence: Evidence, system: str, cause: str) -> tuple[str, str]:
    """The action against one cause of failure, and the advice in words."""
    chained = bool(evidence.systems(("chain",)))
    norms = "" if evidence.balanced else ", or bring the norms closer (--balance norm)"
    if cause == "step_by_step":
        return "step-by-step", "ask it step by step"
    if cause == "unknown":
        return "train-target-adapter", "train the adapter that should know it"
    if cause == "said_otherwise":
        return "gather-evidence", "if that is right for you, use --metric contains"
    if cause == "cut_off":
        return "gather-evidence", "give a higher --max-new-tokens"
    if cause == "interference":
        if not evidence.systems(("router",)) and not _chain_is_better(evidence, system):
            return "route", f"route instead of merging{norms}"
        if not chained:
            return "chain", "run each hop by its own adapter"
        return "train-target-adapter", f"train one adapter on both{norms}"
    if not any(score.part == "steps" for score in evidence.evaluation):
        return "step-by-step", "give the items a cot_prompt, to ask step by step"
    if not chained:
        return "chain", "run each hop by its own adapter"
    return "train-target-adapter", "train an adapter on the composed question"


def _chain_is_better(evidence: Evidence, system: str) -> bool:
    """Whether a chain was measured that scores more than this composition."""
    own = evidence.mean(system, "question") or 0.0
    chains = evidence.systems(("chain",), "question")
    return any((evidence.mean(chain, "question") or 0.0) > own for chain in chains)


def _base_is_better(best: Candidate) -> Reason:
    return Reason(
        "base-is-better",
        f"The base alone is better than every composition: {best.system} differs from it by "
        f"{fmt.gain(best.difference, best.low, best.high)}.",
        best.high,
        0.0,
        fmt.MARGIN,
    )


def _single_suffices(single: tuple[str, str, float], best: Candidate, evidence: Evidence) -> Reason:
    name, part, score = single
    own = evidence.mean(best.system, best.part) or 0.0
    return Reason(
        "single-suffices",
        f"{name} alone, {fmt.PART[part]}, scores {fmt.number(abs(score))}, the best composition "
        f"({best.system}) {fmt.number(abs(own))}.",
        score,
        evidence.margin,
        fmt.MARGIN,
    )


def _base_suffices(evidence: Evidence) -> Reason:
    name = evidence.systems(("base",), "question")[0]
    return Reason(
        "base-suffices",
        f"The base alone scores {fmt.number(evidence.mean(name, 'question') or 0.0)}: "
        "no adapter is needed for this.",
        evidence.lower(name, "question"),
        1 - evidence.margin,
        fmt.BOUND,
    )
