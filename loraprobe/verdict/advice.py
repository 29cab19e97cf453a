"""The action of a decision that is not `likely`, from what was measured.

The first of these that holds: a chain that is shown to gain; more evidence, if nothing is decided;
the base, if it is at the ceiling; the best single adapter, if it is shown to beat the base by more
than the margin and no composition gains; for several tasks a router or each adapter for its own
task; else what the commonest cause of failure (attribution) calls for.
"""

from __future__ import annotations

from loraprobe.records import Reason
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.candidates import chain_gain
from loraprobe.verdict.evaluated import Candidate
from loraprobe.verdict.evidence import Evidence

CAUSES = ("step_by_step", "unknown", "interference", "not_composed")
LOST = "hops known alone are lost together"
WRONG = "all steps survive and the answer is still wrong"


def action_for(evidence: Evidence, best: Candidate, decision: str) -> tuple[str, list[Reason]]:
    """The action of a decision that is not `likely`, and its reasons."""
    chain = chain_gain(evidence)
    chain_gains = chain is not None and chain.gains == "likely"
    action, reasons = _by_cause(evidence, best.system, chain_gains)
    if chain_gains:
        return "chain", reasons
    if decision == "inconclusive":
        return "gather-evidence", reasons
    if _base_at_ceiling(evidence):
        return "use-base", [_base_suffices(evidence), *reasons]
    single = best_single(evidence)
    if single is not None and best.gains == "unlikely":
        return f"use-single:{single[0]}", [_single_suffices(single, evidence), *reasons]
    if evidence.several:
        return _keep_apart(evidence, best)
    return action, reasons


def _keep_apart(evidence: Evidence, best: Candidate) -> tuple[str, list[Reason]]:
    """Several skills that one composition does not keep: route, or switch adapters by task.

    To switch adapters helps only if on every task some adapter is shown to differ from the base.
    """
    if not evidence.systems(("router",)):
        return "route", []
    text = (
        "No merge and no router keeps all skills: load the adapter of each task by itself, or "
        "train one adapter on all tasks."
    )
    learned = all(kept.value is not None for kept in best.kept)
    action = "switch-adapters" if learned else "train-target-adapter"
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


def _by_cause(evidence: Evidence, system: str, chain_gains: bool) -> tuple[str, list[Reason]]:
    """The action for the commonest cause of a system's failures, and the counts as a reason."""
    rows = [row for row in evidence.attribution if row.system == system]
    counts = {cause: sum(getattr(row, cause) for row in rows) for cause in CAUSES}
    if not any(counts.values()):
        return "train-target-adapter", []
    solved = sum(row.solved for row in rows)
    total = sum(counts.values()) + solved
    cause = max(CAUSES, key=lambda c: counts[c])
    action, advice = _cure(evidence, cause, chain_gains)
    spread = ", ".join(f"{counts[c]} {c.replace('_', ' ')}" for c in CAUSES)
    reason = Reason(
        "mostly-" + cause.replace("_", "-"),
        f"Of {fmt.count(total, 'item')} {system} solves {solved}; {spread}: {advice}.",
        counts[cause] / total,
        source="each item counts under the first cause that fits",
    )
    return action, [reason]


def _cure(evidence: Evidence, cause: str, chain_gains: bool) -> tuple[str, str]:
    """The action against one cause of failure, and the advice in words."""
    chained = bool(evidence.systems(("chain",)))
    norms = "" if evidence.balanced else ", or bring the norms closer (--balance norm)"
    if cause == "step_by_step":
        return "step-by-step", "ask it step by step"
    if cause == "unknown":
        return (
            "train-target-adapter",
            "some step is known to no adapter and not to the base, "
            "so train the adapter that should know it",
        )
    what = LOST if cause == "interference" else WRONG
    if chain_gains:
        return "chain", f"{what}, so run each hop by its own adapter, which gains"
    if cause == "interference":
        if not evidence.systems(("router",)):
            return "route", f"{what}, so route instead of merging{norms}"
        if not chained:
            return "chain", f"{what} even when routed, so run each hop by its own adapter"
        return "train-target-adapter", f"{what}, so train one adapter on both{norms}"
    if not any(score.part == "steps" for score in evidence.evaluation):
        return (
            "step-by-step",
            f"{what}, so give the items a cot_prompt and measure the step-by-step form",
        )
    if not chained:
        return "chain", f"{what}, so run each hop by its own adapter"
    return "train-target-adapter", f"{what}, so train an adapter on the composed question itself"


def _single_suffices(single: tuple[str, str, float], evidence: Evidence) -> Reason:
    name, part, score = single
    return Reason(
        "single-suffices",
        f"{name} alone, {fmt.PART[part]}, scores {fmt.number(abs(score))}, better than the "
        "base by more than the margin, and no composition is shown to beat it.",
        score,
        evidence.margin,
        fmt.MARGIN,
    )


def _base_suffices(evidence: Evidence) -> Reason:
    name = evidence.systems(("base",), "question")[0]
    return Reason(
        "base-suffices",
        f"The base alone scores {fmt.number(evidence.mean(name, 'target') or 0.0)}: "
        "no adapter is needed for this.",
        evidence.lower(name, "question"),
        1 - evidence.margin,
        fmt.BOUND,
    )
