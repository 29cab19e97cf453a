"""What to use: the best system that was measured, whatever the decision.

It is a system in one form of the question: the base, one adapter, a merge, a router, the adapters
switched by task (which are no single model), or a chain. The best measured score wins. A simpler
system wins a tie (`tied`), in the order of SIMPLICITY, the plain question before worked steps. Of
merges with the same score the one wins that changes the base less.

A chain takes a call for each hop, the others take one call. It is advised where one call scores
less than half of it, or where it made the decision (`rules.chain_outdoes`). What was not measured
is advised only where nothing that was measured answers: then the commonest cause of failure
(attribution) says what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from loraprobe.defaults import CHAIN_WORTH, TIES_OF_NOISE
from loraprobe.formatting import count
from loraprobe.records import (
    BASELINES,
    FORMS,
    Decision,
    Estimate,
    EvaluationRecords,
    Reason,
    Verdict,
    averaged,
)
from loraprobe.verdict.evidence import (
    COMPOSITIONS,
    FORM,
    Candidate,
    Criterion,
    Evidence,
    by_change,
    gain_criterion,
)
from loraprobe.verdict.reasons import reason_of

SIMPLICITY = ("base", "adapter", "merge", "router", "switch", "chain")
SWITCH = "switch-adapters"  # the name of the system of that kind, and the action that uses it
ACTIONS = {"base": "use-base", "switch": SWITCH, "merge": "merge", "router": "route"}
ACTIONS |= {"chain": "chain"}
# The causes of failure. The first counts where several are equally common.
CAUSES = ("step_by_step", "said_otherwise", "unknown", "cut_off", "interference", "not_composed")


# ---- systems with their scores -------------------------------------------------------------------


@dataclass(frozen=True)
class ScoredSystem:
    """A system in one form of the question with its score, more is better; of several tasks the
    mean."""

    system: str
    kind: str
    part: str
    score: Estimate

    def __str__(self) -> str:
        if self.kind == "chain":
            return "A chain, asked hop after hop"
        who = {"base": "the base", "switch": "each task's own adapter"}.get(self.kind, self.system)
        return f"{who}, {self.form}"

    @property
    def form(self) -> str:
        """The form of the question in words."""
        return FORM[self.part]

    @property
    def shown(self) -> float:
        """The score as it is printed: a loss without its sign."""
        return abs(self.score.value)

    @property
    def effort(self) -> tuple[int, int]:
        """How much the system asks of its user; less is simpler."""
        return SIMPLICITY.index(self.kind), FORMS.index(self.part)

    @property
    def action(self) -> str:
        """The action that uses it."""
        if self.kind in COMPOSITIONS and self.part == "steps":
            return "step-by-step"
        return ACTIONS.get(self.kind, f"use-single:{self.system}")


def scored(evidence: Evidence, system: str, part: str) -> ScoredSystem | None:
    """A system in one form; None unless it was scored on every task."""
    tasks = tuple(row.task for row in evidence.scores(system, part))
    score = evidence.estimate(system, part)
    if score is None or tasks != evidence.task_names:
        return None
    return ScoredSystem(system, evidence.kind(system), part, score)


def scored_systems(
    evidence: Evidence, names: Iterable[str], parts: Iterable[str] = FORMS
) -> list[ScoredSystem]:
    """Those of these systems that were scored, in every form."""
    found = (scored(evidence, name, part) for name in names for part in parts)
    return [one for one in found if one is not None]


def scored_alone(evidence: Evidence) -> list[ScoredSystem]:
    """The base and every single adapter, in both forms.

    Of several tasks only those that are about as good on every task as the best of them there, and
    the adapters switched by task if they are not all the same.
    """
    found = scored_systems(evidence, evidence.systems(BASELINES))
    if not evidence.several:
        return found
    apart = [evidence.on(task) for task in evidence.task_names]
    chosen = (best_of(here, scored_alone(here)) for here in apart)
    members = [one for one in chosen if one is not None]
    if len(members) < len(apart):
        return found

    def suffices(one: ScoredSystem) -> bool:
        scores = [here.estimate(one.system, one.part) for here in apart]
        pairs = zip(members, scores, strict=True)
        return all(s and best.score.value - s.value <= evidence.tie for best, s in pairs)

    suffice = [one for one in found if suffices(one)]
    if len({evidence.same_as(one.system) for one in members}) < 2:
        return suffice
    part = min((one.part for one in members), key=FORMS.index)
    switched = averaged([one.score for one in members])
    return [*suffice, ScoredSystem(SWITCH, "switch", part, switched)]


def best_of(evidence: Evidence, systems: Iterable[ScoredSystem]) -> ScoredSystem | None:
    """The best measured system, or the simplest that ties with it; None without systems."""
    ordered = sorted(
        systems,
        key=lambda one: (one.effort, -round(one.score.value, 9), by_change(one.system)),
    )
    if not ordered:
        return None
    top = max(ordered, key=lambda one: round(one.score.value, 9))
    return next(
        one for one in ordered if one is top or tied(difference(evidence, top, one), evidence.tie)
    )


def tied(better: Estimate, tie: float) -> bool:
    """Whether a system is as good as a better one, so that its simplicity counts.

    It is shown to score at most `tie` less, or it is not shown to score less and the measured
    difference is at most TIES_OF_NOISE ties.
    """
    return (better.value <= TIES_OF_NOISE * tie and better.low <= 0) or better.high <= tie


def difference(
    evidence: Evidence, one: ScoredSystem, other: ScoredSystem, adjusted: bool = False
) -> Estimate:
    """How much better `one` is than `other`.

    Paired over the items where a gain or a comparison holds the two; else from both intervals, as
    if the scores were independent. adjusted: with the interval of the round that covers the choice
    of the best, which a decision takes.
    """
    if (found := _paired(evidence, one, other, adjusted)) is not None:
        return found
    if (back := _paired(evidence, other, one, adjusted)) is not None:
        return -back
    return one.score - other.score


def _paired(
    evidence: Evidence, one: ScoredSystem, other: ScoredSystem, adjusted: bool
) -> Estimate | None:
    """The paired difference of two systems, from a gain or a comparison; None if none has it."""
    pair = one.system, one.part, other.system, other.part
    for gain in evidence.measured.gains:
        held = gain.system, gain.part, gain.against, gain.against_part
        if held == pair and (gain.task is None or not evidence.several):
            return gain.adjusted if adjusted else gain.estimate
    return evidence.difference(*pair, adjusted=adjusted)


# ---- the action ----------------------------------------------------------------------------------


def advise(
    evidence: Evidence,
    composed: Sequence[Candidate],
    best: Candidate,
    decision: Decision,
    outdone: bool,
) -> tuple[str, Candidate | None, Sequence[Reason]]:
    """The action, the composition that it uses (or None), and why.

    composed: all merges and routers in both forms; best: the one that the decision is about;
    outdone: a chain made the decision. A composition is used for `likely` only if it is `likely`
    itself, and never if it is shown to lose a skill.
    """
    likely = decision == "likely"
    sound = [c for c in composed if (c.outcome == "likely" if likely else c.retains != "unlikely")]
    of = {(c.system, c.part): c for c in sound}
    found = [one for name, part in of for one in scored_systems(evidence, [name], [part])]
    cause = "" if likely else commonest_cause(evidence, best.system)
    failing = [_about_cause(evidence, best.system, cause)] if cause else []
    measured = [*scored_alone(evidence), *found]
    chosen, chain = best_of(evidence, measured), scored(evidence, "chain", "question")
    if decision == "inconclusive" and best.binds(best.confirmed):
        return "gather-evidence", None, failing
    if chain is not None and answers(evidence, chain) and not evidence.losses:
        worth = chosen is None or chosen.score.value * CHAIN_WORTH < chain.score.value
        if worth or outdone:
            return "chain", None, failing
    if chosen is not None and (likely or answers(evidence, chosen)):
        uses = of.get((chosen.system, chosen.part))
        told = [] if likely and uses else [_why(evidence, chosen, best)]
        told += _close(evidence, chosen, measured)
        if cause != "step_by_step" or chosen.part != "steps":
            told += failing
        return chosen.action, uses, told
    if decision == "inconclusive":
        return "gather-evidence", None, failing
    if not cause or evidence.several:
        return "train-target-adapter", None, failing
    action, words = _cure(evidence, cause)
    return action, None, [_about_cause(evidence, best.system, cause, f": {words}")]


def answers(evidence: Evidence, one: ScoredSystem) -> bool:
    """Whether a system is shown to answer more than guessing does."""
    return evidence.losses or one.score.low > evidence.guessing + evidence.tie


def settled(evidence: Evidence, verdict: Verdict) -> bool:
    """Whether more items would hardly show that something answers after all.

    An action that uses what was measured is settled with its decision. For another one, no system
    may score much more than guessing does.
    """
    if verdict.composes or verdict.action.startswith(("use-", "chain", SWITCH)):
        return True
    most = evidence.guessing + 2 * evidence.tie
    names = evidence.systems((*BASELINES, *COMPOSITIONS, "chain"))
    return all(one.score.high <= most for one in scored_systems(evidence, names))


def _why(evidence: Evidence, chosen: ScoredSystem, best: Candidate) -> Reason:
    """Why the best system is used."""
    composed = evidence.estimate(best.system, best.part)
    own = 0.0 if composed is None else abs(composed.value)
    where = ", on every task" if evidence.several else ""
    score, full = chosen.score, chosen.score.low > 1 - evidence.tie and not evidence.losses
    code, value, threshold = {
        "base": ("base-suffices" if full else "base-is-better", score.low, None),
        "adapter": ("single-suffices", score.value, evidence.tie),
        "switch": (SWITCH, score.value, None),
    }.get(chosen.kind, ("best-measured", score.value, evidence.margin))
    return reason_of(code, value, threshold, chosen=chosen, best=best, own=own, everywhere=where)


def _close(
    evidence: Evidence, chosen: ScoredSystem, measured: Sequence[ScoredSystem]
) -> list[Reason]:
    """That a simpler system is advised than the one that scored most, where it is."""
    found = [
        one
        for one in measured
        if one.system != chosen.system
        and round(one.score.value - chosen.score.value, 9) > 0
        and difference(evidence, one, chosen).low <= 0
    ]
    if not found:
        return []
    other = min(found, key=lambda one: (-one.score.value, one.effort, by_change(one.system)))
    gap, noise = other.score.value - chosen.score.value, TIES_OF_NOISE * evidence.tie
    return [reason_of("not-told-apart", gap, noise, other=other, chosen=chosen)]


def commonest_cause(evidence: Evidence, system: str) -> str:
    """The commonest cause of a system's wrong answers; "" where none was attributed to a cause."""
    counts = _causes(evidence, system)
    most = max(CAUSES, key=lambda cause: counts[cause])
    return most if counts[most] else ""


def _causes(evidence: Evidence, system: str) -> dict[str, int]:
    """How many of a system's answers are right, and wrong for each cause."""
    rows = [row for row in evidence.measured.attribution if row.system == system]
    return {cause: sum(getattr(row, cause) for row in rows) for cause in ("solved", *CAUSES)}


def _about_cause(evidence: Evidence, system: str, cause: str, advice: str = "") -> Reason:
    """The cause in one line, with the advice that follows from it if that is the action."""
    counts = _causes(evidence, system)
    items = sum(counts.values())
    wrong = count(items - counts["solved"], "wrong answer")
    return reason_of(
        "mostly-" + cause.replace("_", "-"),
        counts[cause] / items,
        wrong=f"Of {wrong} of {system} {counts[cause]}",
        advice=advice,
    )


def _cure(evidence: Evidence, cause: str) -> tuple[str, str]:
    """The action against a cause of failure where nothing answers, and the advice in words."""
    norms = "" if evidence.balanced else ", or bring the norms closer (--balance norm)"
    cures = {
        "unknown": ("train-target-adapter", "train the adapter that should know it"),
        "said_otherwise": ("gather-evidence", "if that is right for you, use --metric contains"),
        "cut_off": ("gather-evidence", "give a higher --max-new-tokens"),
        "interference": ("train-target-adapter", f"train one adapter on both{norms}"),
    }
    if cause in cures:
        return cures[cause]
    if all(score.part != "steps" for score in evidence.measured.scores):
        return "step-by-step", "give the items a cot_prompt, to ask step by step"
    return "train-target-adapter", "train an adapter on the composed question"


# ---- what a verdict rests on ---------------------------------------------------------------------


@dataclass(frozen=True)
class Basis:
    """What a verdict advises and decides about, as it was measured; each None where it was not.

    `used` is what the action uses. `gain` is the decisive gain against the margin, that of
    `composed` over `baseline`. `chain` was asked hop after hop.
    """

    used: ScoredSystem | None
    chain: ScoredSystem | None
    gain: Criterion | None = None
    composed: ScoredSystem | None = None
    baseline: ScoredSystem | None = None


def basis(verdict: Verdict, records: EvaluationRecords) -> Basis:
    """The systems of a verdict with their scores."""
    evidence, best = Evidence(records, margin=verdict.margin), verdict.gain
    head, _, single = verdict.action.partition(":")
    used, chain = None, scored(evidence, "chain", "question")
    if verdict.composes:
        part = "steps" if head == "step-by-step" else "question"
        used = scored(evidence, verdict.system or "", part)
    elif head == "chain":
        used = chain
    elif head in ("use-single", "use-base"):
        forms = scored_systems(evidence, [single or "base"])
        used = max(forms, key=lambda one: one.score.value, default=None)
    row = evidence.gain(best.system, best.form) if best is not None else None
    if row is None:
        return Basis(used, chain)
    composed = scored(evidence, row.system, row.part)
    baseline = scored(evidence, row.against, row.against_part)
    return Basis(used, chain, gain_criterion(row, verdict.margin), composed, baseline)
