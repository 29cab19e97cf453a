"""What to do when composing weights is not the answer, read from what was measured.

In this order: the chain, if it is shown to gain; the best single adapter, if it is shown to beat
the base by more than the margin on some form of the question and no composition gains on it; for
several tasks a router, or each adapter for its own task; else what the failures say
(attribution): knowledge that no adapter holds has to be trained, interference between hops calls
for a router or a chain, hops that survive but do not compose call for the step-by-step form, a
chain, or an adapter trained on the target itself.
"""

from __future__ import annotations

from loraprobe.records import Reason
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.candidates import Candidate, candidates
from loraprobe.verdict.evidence import Evidence

ATTRIBUTION = "each item falls to the first cause that fits"
CAUSES = ("step_by_step", "unknown", "interference", "not_composed")
CHAINED = {  # action and advice where each hop by its own adapter was measured and gains
    "interference": (
        "chain",
        "hops known alone are lost together, so run each hop by its own adapter, which gains",
    ),
    "not_composed": (
        "chain",
        "all steps survive and the answer is still wrong, so run each hop by its own adapter, "
        "which gains",
    ),
}


def chain_gain(evidence: Evidence) -> Candidate | None:
    """The chain's gain over the best of base and singles on the plain question."""
    found = candidates(evidence, "target", ("chain",))
    return found[0] if found else None


def action_for(evidence: Evidence, best: Candidate, decision: str) -> tuple[str, list[Reason]]:
    """The action of a decision that is not `likely`, and why."""
    chain = chain_gain(evidence)
    if chain is not None and chain.gains == "likely":
        return "chain", attributed(evidence, best.system)[1]
    action, reasons = attributed(evidence, best.system)
    if decision == "inconclusive":
        return "none", reasons
    if base_suffices(evidence):
        return "none", [_base_suffices(evidence), *reasons]
    single = best_single(evidence)
    if single is not None and best.gains == "unlikely":
        return f"use-single:{single[0]}", [_single(single, evidence), *reasons]
    if evidence.several:
        return _keep_apart(evidence)
    return action, reasons


def _keep_apart(evidence: Evidence) -> tuple[str, list[Reason]]:
    """Several skills that one composition does not keep: route, or switch adapters by task."""
    if not evidence.systems(("router",)):
        return "route", []
    text = (
        "No merge and no router keeps all skills: load the adapter of each task by itself, or "
        "train one adapter on all tasks."
    )
    return "none", [Reason("switch-adapters", text, source=fmt.RETENTION)]


def best_single(evidence: Evidence) -> tuple[str, str, float] | None:
    """(name, part, score) of the single adapter that is shown to beat the base by the margin.

    Its lower bound has to exceed the base's score on the plain question and on its own form by
    the margin. None if no single adapter does.
    """
    found = []
    for part in ("target", "cot"):
        base = [
            evidence.mean(name, p) or 0.0
            for name in evidence.systems(("base",))
            for p in ("target", part)
        ]
        for name in evidence.systems(("adapter",), part):
            low, mean = evidence.lower(name, part), evidence.mean(name, part)
            if (
                low is not None
                and mean is not None
                and low > max(base, default=0.0) + evidence.margin
            ):
                found.append((name, part, mean))
    return min(found, key=lambda f: (-f[2], f[1] != "target", f[0]), default=None)


def base_suffices(evidence: Evidence) -> bool:
    """Whether the base alone is so good that nothing within [0, 1] can gain the margin."""
    lows = [evidence.lower(name, "target") for name in evidence.systems(("base",), "target")]
    return any(low is not None and low > 1 - evidence.margin for low in lows)


def attributed(evidence: Evidence, system: str) -> tuple[str, list[Reason]]:
    """The action that the failures of a system call for, and the counts as reasons."""
    rows = [row for row in evidence.attribution if row.system == system]
    counts = {cause: sum(getattr(row, cause) for row in rows) for cause in CAUSES}
    total = sum(counts.values()) + sum(row.solved for row in rows)
    if not total or not any(counts.values()):
        return "train-target-adapter", []
    cause = max(CAUSES, key=lambda c: counts[c])
    chain = chain_gain(evidence)
    gains = chain is not None and chain.gains == "likely"
    action, advice = CHAINED[cause] if gains and cause in CHAINED else _cure(evidence, cause)
    solved = sum(row.solved for row in rows)
    spread = ", ".join(f"{counts[c]} {c.replace('_', ' ')}" for c in CAUSES)
    return action, [
        Reason(
            "mostly-" + cause.replace("_", "-"),
            f"Of {fmt.count(total, 'item')} {system} solves {solved}; {spread}: {advice}.",
            counts[cause] / total,
            None,
            ATTRIBUTION,
        )
    ]


def _cure(evidence: Evidence, cause: str) -> tuple[str, str]:
    chain = bool(evidence.systems(("chain",)))
    norms = "" if evidence.balanced else ", or bring the norms closer (--balance norm)"
    if cause == "step_by_step":
        return "step-by-step", "ask it step by step"
    if cause == "unknown":
        return (
            "train-target-adapter",
            "some step is known to no adapter and not to the base, "
            "so train the adapter that should know it",
        )
    if cause == "interference":
        if not evidence.systems(("router",)):
            return (
                "route",
                f"hops known alone are lost together, so route instead of merging{norms}",
            )
        if not chain:
            return (
                "chain",
                "hops known alone are lost together even when routed, so run each "
                "hop by its own adapter",
            )
        return (
            "train-target-adapter",
            f"hops known alone are lost together, so train one adapter on both{norms}",
        )
    if not any(score.part == "cot" for score in evidence.evaluation):
        return (
            "step-by-step",
            "all steps survive and the answer is still wrong, so give the "
            "items a cot_prompt and measure the step-by-step form",
        )
    if not chain:
        return (
            "chain",
            "all steps survive and the answer is still wrong, so run each hop by its own adapter",
        )
    return (
        "train-target-adapter",
        "all steps survive and the answer is still wrong, so train "
        "an adapter on the composed question itself",
    )


def _single(single: tuple[str, str, float], evidence: Evidence) -> Reason:
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
    name = evidence.systems(("base",), "target")[0]
    return Reason(
        "base-suffices",
        f"The base alone scores {fmt.number(evidence.mean(name, 'target') or 0.0)}: "
        "no adapter is needed for this.",
        evidence.lower(name, "target"),
        1 - evidence.margin,
        fmt.BOUND,
    )
