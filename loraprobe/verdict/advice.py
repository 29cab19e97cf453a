"""What to use: the best system that was measured, whatever the decision.

`Evidence.leader` says which one that is. While few questions leave open whether several skills are
kept, it is what scores most, and of equal systems one that holds all the adapters: so few questions
show no two systems to be alike, and the simpler one is often found to lack a skill
(examples/advice). A chain takes a call for each hop, the others take one
call. It is advised where one call scores less than half of it, or where it made the decision
(`rules.chain_outdoes`). What was not measured is advised only where nothing that was measured
answers: then the commonest cause of failure (attribution) says what to do. What is excluded
is never advised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loraprobe.defaults import BY_PROMPT, BY_TEXT, CHAIN_WORTH, TIES_OF_NOISE
from loraprobe.formatting import count, gained, listing, signed
from loraprobe.records import (
    BASELINES,
    COMPOSITIONS,
    FORMS,
    QUESTION,
    STEPS,
    Action,
    ActionKind,
    Decision,
    EvaluationRecords,
    ItemPart,
    Missing,
    Reason,
    Verdict,
    display_name,
    kinds,
    references,
)
from loraprobe.verdict.evidence import (
    SWITCH,
    Candidate,
    Criterion,
    Evidence,
    ScoredSystem,
    gain_criterion,
    ranked,
)
from loraprobe.verdict.reasons import reason_of

MOST_UNSAFE = 3  # systems that lose a guard and are named
# The causes of failure. The first counts where several are equally common.
CAUSES = ("step_by_step", "said_otherwise", "unknown", "cut_off", "interference", "not_composed")


@dataclass(frozen=True)
class Advice:
    """What to do, and why.

    `used` is the measured system that the action uses, `composition` the merge or router that this
    is, each None if there is none. `missing` is what would tell more, see `Verdict`.
    """

    action: Action
    reasons: Sequence[Reason] = ()
    used: ScoredSystem | None = None
    composition: Candidate | None = None
    missing: Missing | None = None


def advise(
    evidence: Evidence,
    composed: Sequence[Candidate],
    best: Candidate,
    decision: Decision,
    outdone: bool,
) -> Advice:
    """What to use after compositions were asked.

    composed: all merges and routers in both forms; best: the one that the decision is about;
    outdone: a chain made the decision. A composition is used for `likely` only if it is `likely`
    itself, unless all that are `likely` are excluded, and never if it is shown to lose a skill or a
    guard; neither is an adapter that loses a guard. A reference is advised only where nothing is
    `likely`.
    """
    likely, usable = decision == "likely", evidence.usable
    can_run = [c for c in composed if c.system not in evidence.excluded]
    sound = [c for c in can_run if likely and c.outcome == "likely"]
    sound = sound or [c for c in can_run if c.retains != "unlikely"]
    by_form = {(c.system, c.part): c for c in sound}
    measured = [*usable.scored_alone(), *usable.scored_candidates(sound)]
    if not likely:
        measured += usable.scored_references()
    early = decision == "inconclusive" and evidence.several and evidence.few_items
    chosen = _most(measured) if early else usable.leader(measured)
    chain = next(iter(usable.scored(["chain"], [QUESTION])), None)
    cause = "" if likely else commonest_cause(evidence, best.system)
    failing = [_about_cause(evidence, best.system, cause)] if cause else []
    if decision == "inconclusive" and best.missing == "metric":
        return Advice(Action("gather-evidence"), failing)
    chained = chain is not None and answers(evidence, chain) and not evidence.losses
    if chain is not None and chained and (outdone or worth_its_calls(chain, chosen)):
        return Advice(Action("chain"), failing, used=chain)
    composition = None if chosen is None else by_form.get((chosen.system, chosen.part))
    as_decided = likely and composition is not None and composition.outcome == "likely"
    if chosen is not None and (as_decided or answers(evidence, chosen)):
        full = chosen.kind == "base" and evidence.at_ceiling(chosen.score, evidence.tie)
        reasons = [] if as_decided else [_why(evidence, chosen, best)]
        kept = usable.scored_candidates(c for c in can_run if c.retains != "unlikely")
        reasons += _close(evidence, chosen, measured, kept)
        reasons += _on_any_program(evidence, chosen, kept)
        reasons += _by_text(evidence)
        if cause != "step_by_step" or chosen.part != STEPS:
            reasons += failing
        return Advice(chosen.action, reasons, chosen, composition, "harder-items" if full else None)
    if decision == "inconclusive":
        return Advice(Action("gather-evidence"), failing)
    if not cause or evidence.several:
        return Advice(Action("train-target-adapter"), failing)
    return _against_cause(evidence, best.system, cause)


def _most(systems: Iterable[ScoredSystem]) -> ScoredSystem | None:
    """What scores most, of equal systems one that holds all the adapters; None without systems."""
    return min(
        ranked(systems),
        key=lambda system: (-round(system.score.value, 9), system.kind in BASELINES),
        default=None,
    )


def answers(evidence: Evidence, system: ScoredSystem) -> bool:
    """Whether a system is shown to answer more than guessing does, and scored a tie more."""
    guessing, score = evidence.guessing, system.score
    return evidence.losses or (score.low > guessing and score.value > guessing + evidence.tie)


def worth_its_calls(chain: ScoredSystem, other: ScoredSystem | None) -> bool:
    """Whether a chain scores so much more than one call that it is worth a call for each hop."""
    return other is None or other.score.value * CHAIN_WORTH < chain.score.value


def action_is_certain(evidence: Evidence, verdict: Verdict) -> bool:
    """Whether more items would hardly show that something else answers after all.

    An action that uses what was measured is as certain as its decision if that is shown to score a
    tie more than guessing does. Without such a system, none may score much more than guessing.
    """
    least = evidence.guessing + evidence.tie
    if verdict.composes or verdict.action.kind == SWITCH:
        return True
    used = evidence.scored([verdict.used or ""])
    if any(evidence.losses or one.score.low > least for one in used):
        return True
    names = evidence.systems((*BASELINES, *COMPOSITIONS, *references(), "chain"))
    return all(one.score.high <= least + evidence.tie for one in evidence.scored(names))


def _why(evidence: Evidence, chosen: ScoredSystem, best: Candidate) -> Reason:
    """Why the best system is used."""
    best_score = next((s.shown for s in evidence.scored([best.system], [best.part])), 0.0)
    where = ", on every task" if evidence.several else ""
    score, full = chosen.score, evidence.at_ceiling(chosen.score, evidence.tie)
    better = "only-base-is-safe" if evidence.measured.unsafe else "base-is-better"
    code, value, threshold = {
        "base": ("base-suffices" if full else better, score.low, None),
        "adapter": ("single-suffices", score.value, evidence.tie),
        "switch": (SWITCH, score.value, None),
    }.get(chosen.kind, ("best-measured", score.value, evidence.margin))
    return reason_of(
        code, value, threshold, chosen=chosen, best=best, own=best_score, everywhere=where
    )


def _close(
    evidence: Evidence,
    chosen: ScoredSystem,
    measured: Sequence[ScoredSystem],
    kept: Sequence[ScoredSystem],
) -> list[Reason]:
    """What is about as good as what is advised.

    measured: what might have been advised; kept: all compositions that may keep every skill. It is
    the system that scored more, where a simpler one is advised; else a merge, a router or the
    adapters switched by task, of another kind than what is advised, that scores less by at most the
    margin.
    """
    noise = TIES_OF_NOISE * evidence.tie
    others = [s for s in ranked({*measured, *kept}) if s.system != chosen.system]
    for other in others:
        gap = other.score.value - chosen.score.value
        if round(gap, 9) > 0 and evidence.difference(other, chosen).low <= 0:
            return [reason_of("not-told-apart", gap, noise, other=other, chosen=chosen)]
    combined = {"switch", *COMPOSITIONS}
    for other in (s for s in others if s in measured and chosen.kind in combined):
        near = chosen.score.value - other.score.value <= evidence.tie
        if near and other.kind in combined - {chosen.kind}:
            return [_hardly_less(chosen, other)]
    return []


def _on_any_program(
    evidence: Evidence, chosen: ScoredSystem, kept: Sequence[ScoredSystem]
) -> list[Reason]:
    """The best merge, which every program loads, where a router is advised that is at most a tie
    better. kept: compositions that may keep every skill."""
    merges = [system for system in kept if system.kind == "merge" and answers(evidence, system)]
    best = evidence.leader(merges)
    if best is None or kinds()[chosen.kind].loadable:
        return []
    gap = round(chosen.score.value - best.score.value, 9)
    if gap > evidence.tie:
        return []
    form = f", {best.form}" if best.part == STEPS else ""
    less = f"{abs(gap):.2f} {'lower' if gap > 0 else 'higher'}" if gap else "as much"
    return [reason_of("on-any-server", gap, evidence.tie, merge=best.system + form, less=less)]


def _by_text(evidence: Evidence) -> list[Reason]:
    """What the router by text scores beside that by hidden states, where both were measured."""
    both = {one.system: one for one in evidence.scored((BY_TEXT, BY_PROMPT), [QUESTION])}
    if len(both) < 2:
        return []
    text, states = both[BY_TEXT], both[BY_PROMPT]
    less = evidence.difference(text, states)
    figure = gained(less.value, (less.low, less.high))
    own, other = text.shown, states.shown
    return [
        reason_of(
            "by-text", less.value, text=text, own=own, states=states, other=other, figure=figure
        )
    ]


def _hardly_less(chosen: ScoredSystem, other: ScoredSystem) -> Reason:
    """That an option scores as much as what is advised, or hardly less."""
    same = f"{other.shown:z.2f}" == f"{chosen.shown:z.2f}"
    much = "as much" if same else f"hardly less than {chosen.shown:z.2f}"
    return reason_of("as-good", other.shown, chosen.shown, other=other, much=much)


def unsafe_but_better(evidence: Evidence, used: ScoredSystem | None) -> list[Reason]:
    """What answers, scores more than what is advised and is shown to lose a guard."""
    lost = {row.system: row for row in evidence.measured.guards if row.outcome == "unlikely"}
    told = dict[str, str]()
    for system in ranked(evidence.scored(lost)):
        more = used is None or round(system.score.value - used.score.value, 9) > 0
        if more and answers(evidence, system):
            row = lost[system.system]
            figures = f"{row.task} {row.value:z.2f}"
            who = "a chain" if system.kind == "chain" else str(system)
            told.setdefault(system.system, f"{who} {system.shown:z.2f} ({figures})")
    if not told:
        return []
    worst = min(lost[name].estimate.high for name in told)
    systems = listing([*told.values()][:MOST_UNSAFE])
    what = "answers" if used is None else "scores more"
    kept = listing(dict.fromkeys(f"{lost[name].task} {lost[name].base:.2f}" for name in told))
    return [reason_of("better-is-unsafe", worst, systems=systems, what=what, kept=kept)]


def excluded_but_better(
    evidence: Evidence,
    composed: Sequence[Candidate],
    best: Candidate,
    used: ScoredSystem | None,
) -> list[Reason]:
    """The best excluded system, if it answers and scores more than what is advised, or makes the
    decision `likely`."""
    contenders = {c.system for c in composed} | {*evidence.systems(BASELINES)}
    refused = evidence.scored(contenders & evidence.excluded.keys())
    if not refused:
        return []
    other = ranked(refused)[0]
    gap = None if used is None else round(other.score.value - used.score.value, 9)
    decides = other.system == best.system and best.outcome == "likely"
    least = -1e-9 if decides else 0.0
    if not answers(evidence, other) or (gap is not None and gap <= least):
        return []
    more = "" if gap is None else f", {signed(gap)} more" if gap else ", as much"
    why, asked = evidence.excluded[other.system], evidence.margin
    return [reason_of(why.code, gap, asked, other=other, more=more, **why.words)]


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
        wrong=f"Of {wrong} of {display_name(system)} {counts[cause]}",
        advice=advice,
    )


def _against_cause(evidence: Evidence, system: str, cause: str) -> Advice:
    """What to do against a cause of failure where nothing answers."""
    worked = any(score.part == STEPS for score in evidence.measured.scores)
    other: tuple[ActionKind, str] = (
        "train-target-adapter",
        "train an adapter on the composed question",
    )
    if not worked:
        other = ("step-by-step", "give the items a cot_prompt, to ask step by step")
    cures: Mapping[str, tuple[ActionKind, str]] = {
        "unknown": ("train-target-adapter", "train the adapter that should know it"),
        "said_otherwise": ("gather-evidence", "if that is right for you, use --metric contains"),
        "cut_off": ("gather-evidence", "give a higher --max-new-tokens"),
        "interference": ("train-target-adapter", "train one adapter on both"),
    }
    action, words = cures.get(cause, other)
    reason = _about_cause(evidence, system, cause, f": {words}")
    return Advice(
        Action(action), [reason], missing="wording" if cause == "said_otherwise" else None
    )


# ---- what a verdict rests on ---------------------------------------------------------------------


@dataclass(frozen=True)
class Basis:
    """What a verdict advises and decides about, as it was measured; each None where it was not.

    `used` is what the action uses. `gain` is the decisive gain against the margin, that of
    `composed` over `baseline`. `chain` was asked hop after hop. `best` is the merge or router that
    scores most, of both forms.
    """

    used: ScoredSystem | None
    chain: ScoredSystem | None
    best: ScoredSystem | None = None
    gain: Criterion | None = None
    composed: ScoredSystem | None = None
    baseline: ScoredSystem | None = None


def basis_of(verdict: Verdict, records: EvaluationRecords) -> Basis:
    """The systems of a verdict with their scores."""
    evidence, best = Evidence(records, margin=verdict.margin), verdict.gain

    def scored(name: str, *parts: ItemPart) -> ScoredSystem | None:
        """The system in that of the forms in which it scores most."""
        return next(iter(ranked(evidence.scored([name], parts))), None)

    chain, parts = scored("chain", QUESTION), FORMS
    if verdict.composes:
        parts = (STEPS,) if verdict.action.kind == "step-by-step" else (QUESTION,)
    used = scored(verdict.used or "", *parts)
    composed = ranked(evidence.scored(evidence.systems(COMPOSITIONS)))
    most = composed[0] if composed else None
    row = evidence.gain(best.system, best.form) if best is not None else None
    if row is None:
        return Basis(used, chain, most)
    gain, baseline = gain_criterion(row, verdict.margin), scored(row.against, row.against_part)
    return Basis(used, chain, most, gain, scored(row.system, row.part), baseline)
