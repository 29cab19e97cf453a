"""Why a composition's wrong answers are wrong (attribution), and what each cause calls for."""

from __future__ import annotations

from dataclasses import dataclass

from loraprobe.formatting import count
from loraprobe.records import Reason
from loraprobe.verdict.codes import reason_of
from loraprobe.verdict.evidence import Evidence

# The first counts where several are equally common.
CAUSES = ("step_by_step", "said_otherwise", "unknown", "cut_off", "interference", "not_composed")
BY_HOP = "ask each hop of whoever answers it best"


@dataclass(frozen=True)
class Cause:
    """The commonest cause of a system's wrong answers: how many it has, of how many."""

    name: str
    count: int
    wrong: int
    items: int


def commonest_cause(evidence: Evidence, system: str) -> Cause | None:
    """None where no wrong answer was attributed to a cause."""
    rows = [row for row in evidence.attribution if row.system == system]
    counts = {cause: sum(getattr(row, cause) for row in rows) for cause in CAUSES}
    wrong = sum(counts.values())
    if not wrong:
        return None
    cause = max(CAUSES, key=lambda c: counts[c])
    return Cause(cause, counts[cause], wrong, wrong + sum(row.solved for row in rows))


def about_cause(cause: Cause | None, system: str, advice: str = "") -> list[Reason]:
    """The cause in one line, with the advice that follows from it if that is the action."""
    if cause is None:
        return []
    return [
        reason_of(
            "mostly-" + cause.name.replace("_", "-"),
            cause.count / cause.items,
            wrong=f"Of {count(cause.wrong, 'wrong answer')} of {system} {cause.count}",
            advice=f": {advice}" if advice else "",
        )
    ]


def cure(evidence: Evidence, system: str, cause: str) -> tuple[str, str]:
    """The action against one cause of failure, and the advice in words."""
    chained = bool(evidence.systems(("chain",)))
    steps = any(score.part == "steps" for score in evidence.evaluation)
    norms = "" if evidence.balanced else ", or bring the norms closer (--balance norm)"
    if cause == "step_by_step" and not steps:
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
            return "chain", BY_HOP
        return "train-target-adapter", f"train one adapter on both{norms}"
    if not steps:
        return "step-by-step", "give the items a cot_prompt, to ask step by step"
    if not chained:
        return "chain", BY_HOP
    return "train-target-adapter", "train an adapter on the composed question"


def _chain_is_better(evidence: Evidence, system: str) -> bool:
    """Whether a chain was measured that scores more than this composition."""
    own = evidence.mean(system, "question") or 0.0
    chains = evidence.systems(("chain",), "question")
    return any((evidence.mean(chain, "question") or 0.0) > own for chain in chains)
