"""What to use: the best option that was measured, whatever the decision.

Options that take one call are compared (`ranking`): the base, the single adapters, the adapters
switched by task, merges and routers, in both forms of the question. A chain takes a call for each
hop; it is advised where one call scores less than half of it, or where it made the decision
(`evaluated.chain_outdoes`). What was not measured is advised only where nothing that was measured
answers: then the commonest cause of failure (attribution) says what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loraprobe.formatting import count
from loraprobe.records import BASELINES, Decision, Reason, Verdict
from loraprobe.verdict.codes import reason_of
from loraprobe.verdict.evaluated import Candidate
from loraprobe.verdict.evidence import COMPOSITIONS, Evidence
from loraprobe.verdict.ranking import (
    NOISE,
    SWITCH,
    Option,
    alone,
    best_option,
    not_told_apart,
    option,
    options,
)

CHAIN_WORTH = 2.0  # a chain scores this many times what one call scores, to be worth its calls
# The causes of failure. The first counts where several are equally common.
CAUSES = ("step_by_step", "said_otherwise", "unknown", "cut_off", "interference", "not_composed")


@dataclass(frozen=True)
class Advice:
    """The action, the candidate that it uses (None: no composition), and why."""

    action: str
    uses: Candidate | None
    reasons: tuple[Reason, ...]


def action_of(one: Option) -> str:
    """The action that uses an option."""
    if one.kind in COMPOSITIONS and one.part == "steps":
        return "step-by-step"
    return {
        "base": "use-base",
        "adapter": f"use-single:{one.system}",
        "switch": SWITCH,
        "merge": "merge",
        "router": "route",
        "chain": "chain",
    }[one.kind]


def advise(
    evidence: Evidence,
    composed: Sequence[Candidate],
    best: Candidate,
    decision: Decision,
    outdone: bool,
) -> Advice:
    """What to use.

    composed: all merges and routers in both forms; best: the one that the decision is about;
    outdone: a chain made the decision. A composition is used for `likely` only if it is `likely`
    itself, and never if it is shown to lose a skill.
    """
    likely = decision == "likely"
    sound = [c for c in composed if (c.outcome == "likely" if likely else c.retains != "unlikely")]
    of = {(c.system, c.part): c for c in sound}
    found = [one for key in of if (one := option(evidence, *key)) is not None]
    cause = None if likely else commonest_cause(evidence, best.system)
    failing = [] if cause is None else [cause.reason()]
    measured = [*alone(evidence), *found]
    chosen, chain = best_option(evidence, measured), option(evidence, "chain", "question")
    if decision == "inconclusive" and best.binds(best.confirmed):
        return Advice("gather-evidence", None, tuple(failing))
    if chain is not None and answers(evidence, chain) and not evidence.losses:
        worth = chosen is None or chosen.score * CHAIN_WORTH < chain.score
        if worth or outdone:
            return Advice("chain", None, tuple(failing))
    if chosen is not None and (likely or answers(evidence, chosen)):
        uses = of.get((chosen.system, chosen.part))
        told = list(_close(evidence, chosen, measured))
        if not (likely and uses):
            told.insert(0, _why(evidence, chosen, best))
        steps = cause is not None and cause.name == "step_by_step" and chosen.part == "steps"
        return Advice(action_of(chosen), uses, (*told, *([] if steps else failing)))
    if decision == "inconclusive":
        return Advice("gather-evidence", None, tuple(failing))
    if cause is None or evidence.several:
        return Advice("train-target-adapter", None, tuple(failing))
    action, words = _cure(evidence, cause)
    return Advice(action, None, (cause.reason(words),))


def answers(evidence: Evidence, one: Option) -> bool:
    """Whether an option is shown to answer more than guessing does."""
    return evidence.losses or one.low > _nothing(evidence)


def _nothing(evidence: Evidence) -> float:
    """The score up to which an option answers nothing."""
    return (evidence.guessing or 0.0) + evidence.tie


def settled(evidence: Evidence, verdict: Verdict) -> bool:
    """Whether more items would hardly show that something answers after all.

    An action that uses what was measured is settled with its decision. For another one, no option
    may score much more than guessing does.
    """
    if verdict.composes or verdict.action.startswith(("use-", "chain", SWITCH)):
        return True
    most = _nothing(evidence) + evidence.tie
    return all(one.high <= most for one in options(evidence, (*BASELINES, *COMPOSITIONS, "chain")))


def _why(evidence: Evidence, chosen: Option, best: Candidate) -> Reason:
    """Why the best option is used."""
    own = abs(evidence.mean(best.system, best.part) or 0.0)
    where = ", on every task" if evidence.several else ""
    full = chosen.kind == "base" and chosen.low > 1 - evidence.tie and not evidence.losses
    code, value, threshold = {
        "base": ("base-suffices" if full else "base-is-better", chosen.low, None),
        "adapter": ("single-suffices", chosen.score, evidence.tie),
        "switch": (SWITCH, chosen.score, None),
    }.get(chosen.kind, ("best-measured", chosen.score, evidence.margin))
    return reason_of(code, value, threshold, chosen=chosen, best=best, own=own, everywhere=where)


def _close(evidence: Evidence, chosen: Option, measured: Sequence[Option]) -> tuple[Reason, ...]:
    """That a simpler option is advised than the one that scored most, where it is."""
    for other in not_told_apart(evidence, chosen, measured):
        gap = other.score - chosen.score
        return (reason_of("not-told-apart", gap, NOISE * evidence.tie, other=other, chosen=chosen),)
    return ()


@dataclass(frozen=True)
class Cause:
    """The commonest cause of a system's wrong answers: how many it has, of how many."""

    name: str
    system: str
    count: int
    wrong: int
    items: int

    def reason(self, advice: str = "") -> Reason:
        """The cause in one line, with the advice that follows from it if that is the action."""
        return reason_of(
            "mostly-" + self.name.replace("_", "-"),
            self.count / self.items,
            wrong=f"Of {count(self.wrong, 'wrong answer')} of {self.system} {self.count}",
            advice=f": {advice}" if advice else "",
        )


def commonest_cause(evidence: Evidence, system: str) -> Cause | None:
    """None where no wrong answer was attributed to a cause."""
    rows = [row for row in evidence.attribution if row.system == system]
    counts = {cause: sum(getattr(row, cause) for row in rows) for cause in CAUSES}
    wrong = sum(counts.values())
    if not wrong:
        return None
    cause = max(CAUSES, key=lambda c: counts[c])
    solved = sum(row.solved for row in rows)
    return Cause(cause, system, counts[cause], wrong, wrong + solved)


def _cure(evidence: Evidence, cause: Cause) -> tuple[str, str]:
    """The action against a cause of failure where nothing answers, and the advice in words."""
    steps = any(score.part == "steps" for score in evidence.evaluation)
    norms = "" if evidence.balanced else ", or bring the norms closer (--balance norm)"
    if cause.name == "unknown":
        return "train-target-adapter", "train the adapter that should know it"
    if cause.name == "said_otherwise":
        return "gather-evidence", "if that is right for you, use --metric contains"
    if cause.name == "cut_off":
        return "gather-evidence", "give a higher --max-new-tokens"
    if cause.name == "interference":
        return "train-target-adapter", f"train one adapter on both{norms}"
    if not steps:
        return "step-by-step", "give the items a cot_prompt, to ask step by step"
    return "train-target-adapter", "train an adapter on the composed question"
