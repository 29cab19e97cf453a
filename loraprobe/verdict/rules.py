"""The rules that decide, from the weakest evidence to the strongest.

- *Structure.* An error of compatibility decides alone: `incompatible`.
- *Weights and probes* decide nothing.
- *Base and single adapters* on the task decide `unlikely` in three cases. `nothing-to-gain`: the
  base or one adapter is so good that no composition can gain the margin (its lower bound lies above
  1 - margin). `hop-unknown-to-all`: some hop is unknown to every adapter and to the base, and none
  of them answers the composed question (arXiv 2411.16353, 2506.13479). `disjoint-hops`: every hop
  is known to one adapter of its own and unknown to all others and to the base, and none of them
  answers the composed question: two one-hop adapters over unfamiliar entities do not compose
  (arXiv 2506.13479). They never give `likely`: whether the pieces compose has to be measured.
- *Compositions.* One is `likely` if the interval of its gain lies above the margin, it beats the
  controls, it retains every skill, it keeps every guard, the metric that the gold answers need
  shows the gain too and FEWEST_ITEMS clusters were asked; it is `unlikely` if one of the first four
  is shown to fail, and open where every composition lost too much to its rank to be tested. The
  decision is about merges and routers, and about the form of the question with the better outcome;
  of equal outcomes about the one with the larger gain, the plain question on a tie. Where the
  intervals leave it open, what base and single adapters decide holds, unless a composition
  measured a gain above the margin.
- *A guard* is kept if the interval of composition minus base lies above -(margin of guards), and
  lost if it lies below. Where the interval holds that figure, the guard is open, and so is the
  decision. The best composition stays the leading one while its guard is open; the next one leads
  only after the guard of the first was shown to be lost. If the next one led as soon as a guard was
  open, several compositions would be tried, and one that loses the margin would pass by chance
  more often than in a single test. An adapter that is shown to lose a guard is no reference for a
  gain. Neither it nor such a composition is advised.
- *A chain* composes no weights: it never makes a decision `likely`. Where no composition measured a
  gain above the margin, a chain that is shown to be better than everything else by more than the
  margin makes it `unlikely`: whether a composition gains a little is no question any more.

- *Where nothing answers* more than guessing, neither the question nor a hop, nothing was learned
  about composing: the case is open (`unanswered`).

- *What an annotator misses*, such as adapters that were left unasked, leaves the case open.

A first round of compositions on a few items is decided by the same rules. What annotators tell
makes no decision; it can only leave one open.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

from loraprobe.defaults import MARGIN, UNKNOWN
from loraprobe.formatting import count, listing
from loraprobe.records import (
    BASELINES,
    COMPOSITIONS,
    QUESTION,
    STEPS,
    Action,
    Decision,
    DecisiveGain,
    EvidenceLevel,
    ItemPart,
    Reason,
    TestResult,
    Verdict,
    by_change,
    display_name,
    effort,
)
from loraprobe.verdict import reasons
from loraprobe.verdict.advice import (
    advise,
    answers,
    excluded_but_better,
    unsafe_but_better,
    worth_its_calls,
)
from loraprobe.verdict.annotation import Annotator
from loraprobe.verdict.evidence import (
    SWITCH,
    WEAKEST_FIRST,
    Candidate,
    Evidence,
    held_at_most,
    is_known,
    is_unknown,
)
from loraprobe.verdict.reasons import reason_of
from loraprobe.verdict.unanswered import nothing_answers, unanswered

# What compositions of others gained, which is all that is known before a question is asked.
ELSEWHERE = reason_of(
    "measured-elsewhere",
    0.19,
    source="computed from the data of arXiv 2602.12323: LoraHub, weights searched on 100 examples, "
    "46 tasks",
    sets="603 compositions of 5 to 30 community adapters on Llama-3.1-8B, 19 %",
    margin=MARGIN,
    over=" over base and singles (arXiv 2602.12323)",
)
# Why a level decides nothing, the cheapest evidence that may, and why it is the cheapest.
OPEN: dict[EvidenceLevel, tuple[str, str, str]] = {
    "weights": (
        "weights-do-not-decide",
        "--probe auto asks the base without a task file",
        "cost: no composition is built or scored",
    ),
    "probes": (
        "probes-do-not-decide",
        "a task file with questions that need both adapters",
        "a verdict needs a question with a known answer",
    ),
    "base": (
        "base-does-not-decide",
        "merge-and-eval scores the compositions themselves",
        "coverage cannot see whether known pieces compose",
    ),
}


def decide(evidence: Evidence, annotators: Iterable[Annotator] = ()) -> Verdict:
    """Whether composing works, the evidence for that, the reasons, and what to do.

    annotators: tell something beside the decision, one after another. The reasons that decide come
    first, then those that limit the decision, then the others.
    """
    if not evidence.compatibility.compatible:
        errors = evidence.compatibility.errors
        sentences = [f"{i.code}: {i.message}{f' {i.cure}' if i.cure else ''}" for i in errors]
        conflicts = tuple(reason_of("structural-conflict", issue=text) for text in sentences)
        return Verdict("incompatible", "weights", conflicts, action=Action("fix"))
    verdict = _decide_asked(evidence)
    for annotator in annotators:
        verdict = annotator.annotate(verdict, evidence).on(verdict)
    others = itertools.chain(
        reasons.about_hops(evidence),
        reasons.about_familiarity(evidence),
        reasons.about_weights(evidence),
        reasons.about_items(evidence, verdict),
    )
    # Those that the rules gave have their severity.
    every = [*verdict.reasons, *(reason for reason in others if reason.code not in verdict.codes)]
    severities = ["decisive", "warning", "info"]
    every.sort(key=lambda r: (severities.index(r.severity), reasons.effect_rank(r.code)))
    each = evidence.usable.best_alone() if verdict.action.kind == SWITCH else {}
    by_task = {task: one.system for task, one in each.items()}
    return replace(verdict, reasons=tuple(every), margin=evidence.margin, by_task=by_task)


def _decide_asked(evidence: Evidence) -> Verdict:
    """The verdict by the strongest evidence that was gathered."""
    level = evidence.rests_on
    if nothing_answers(evidence):
        return unanswered(evidence)
    if level == "evaluation":
        return _decide_answered(evidence)
    if level == "pilot":
        return _of_first_round(_decide_answered(evidence), evidence)
    if evidence.level == "evaluation":
        return _decide_without_compositions(evidence)
    return _decide_baselines(evidence) if level == "base" else _undecided(level)


# ---- before compositions are asked ---------------------------------------------------------------


def _undecided(level: EvidenceLevel) -> Verdict:
    """Inconclusive at this level, with the cheapest next evidence."""
    why = [reason_of(OPEN[level][0]), _next_evidence(level)]
    return Verdict("inconclusive", level, (*why, *([] if level == "base" else [ELSEWHERE])))


def _next_evidence(level: EvidenceLevel) -> Reason:
    """The cheapest further evidence after this level."""
    _, cheapest, source = OPEN[level]
    return reason_of("next-evidence", source=source, what=cheapest)


def _decide_baselines(evidence: Evidence) -> Verdict:
    """Coverage and single adapters on the task: unlikely in three cases, else inconclusive."""
    verdict = at_ceiling(evidence)
    asked = [s for s in evidence.measured.scores if s.kind in BASELINES and s.part == QUESTION]
    if verdict is None and asked and not evidence.losses and all(map(is_unknown, asked)):
        verdict = _hop_unknown(evidence) or _disjoint(evidence)
    return verdict or _undecided("base")


def at_ceiling(evidence: Evidence) -> Verdict | None:
    """`unlikely` if the base or an adapter lies above 1 - margin on every task, in one form."""
    margin = evidence.margin
    rows = {
        baseline: [row.estimate for row in evidence.scores(baseline.system, baseline.part)]
        for baseline in evidence.scored(evidence.systems(BASELINES))
        if baseline.system not in evidence.measured.unsafe
    }
    high = [b for b, scores in rows.items() if all(evidence.at_ceiling(s, margin) for s in scores)]
    best = evidence.leader([b for b in high if b.system not in evidence.excluded] or high)
    if best is None:
        return None
    who, low = reasons.baseline_in_words(best.system), min(score.low for score in rows[best])
    reason = reason_of("nothing-to-gain", low, 1 - margin, who=who, best=best, margin=margin)
    return Verdict("unlikely", "base", (reason,), None, best.action, missing="harder-items")


def _hop_unknown(evidence: Evidence) -> Verdict | None:
    """`unlikely` if a hop is unknown to all."""
    for hop, systems in evidence.hops.items():
        scores = systems.values()
        if "base" in systems and len(systems) > 1 and all(map(is_unknown, scores)):
            high = max(map(held_at_most, scores))
            reason = reason_of("hop-unknown-to-all", high, UNKNOWN, hop=hop)
            return Verdict("unlikely", "base", (reason,), None, Action("train-target-adapter"))
    return None


def _disjoint(evidence: Evidence) -> Verdict | None:
    """`unlikely` if each hop is known to an adapter of its own and to nobody else."""
    hops = evidence.hops
    if len(hops) < 2:
        return None
    owners = list[str]()
    for systems in hops.values():
        if "base" not in systems or not is_unknown(systems["base"]):
            return None
        if not all(is_known(score) or is_unknown(score) for score in systems.values()):
            return None
        knowers = {evidence.same_as(name) for name, score in systems.items() if is_known(score)}
        if len(knowers) != 1 or knowers & {*owners}:
            return None
        owners += knowers
    spread = ", ".join(f"hop {k} only to {name}" for k, name in zip(hops, owners, strict=True))
    worst = max(held_at_most(systems["base"]) for systems in hops.values())
    reason = reason_of("disjoint-hops", worst, UNKNOWN, spread=spread)
    return Verdict("unlikely", "base", (reason,), None, Action("chain"))


def _decide_without_compositions(evidence: Evidence) -> Verdict:
    """The verdict where no merge and no router was asked: on the base, the adapters and a chain.

    The decision stays about merges and routers: `unlikely` where the base and the adapters show
    that none can gain, else `inconclusive`. The action is the best of what was asked, a chain where
    it is shown to gain. A second decisive reason says what of that is open.
    """
    baselines, chain = _decide_baselines(evidence), chain_candidate(evidence)
    few = chain is not None and chain.enough == "inconclusive"
    about_chain, standing = list[Reason](), None
    if chain is not None:
        standing = "inconclusive" if few else chain.gain.outcome
        undecided = chain.gain.outcome == "inconclusive"
        about_chain.append(reasons.about_chain(chain, None, undecided))
        if few:
            n, clusters = chain.gain.n, chain.gain.clusters
            about_chain.append(reasons.few_items(n, clusters, decisive=True))
    if baselines.decision == "unlikely":
        why, missing = baselines.reasons, baselines.missing or ("items" if few else None)
    else:
        why = (reason_of("compositions-not-asked", decisive=True),)
        missing = "chain" if standing == "inconclusive" else "compositions"
    return Verdict(
        baselines.decision,
        "base",
        (*why, *about_chain),
        None if chain is None else chain.system,
        _action_of_asked(evidence, baselines, standing),
        missing=missing,
        gain=None if chain is None else _decisive_gain(chain),
    )


def _action_of_asked(evidence: Evidence, baselines: Verdict, chain: TestResult | None) -> Action:
    """What to do where no merge and no router was asked. chain: how its gain stands, if asked.

    What the base and the adapters decide names the action, unless it was tried or is excluded.
    """
    usable, action = evidence.usable, baselines.action
    if chain == "likely" and usable.scored(["chain"]):
        return Action("chain")
    tried = action.kind == "chain" and chain is not None
    excluded = action.adapter in evidence.excluded
    if baselines.decision == "unlikely" and not tried and not excluded:
        return action
    best = usable.leader(usable.scored_alone())
    hops = next(iter(usable.scored(["chain"], [QUESTION])), None)
    if hops is not None and answers(evidence, hops) and worth_its_calls(hops, best):
        return Action("chain")
    return best.action if best and answers(evidence, best) else Action("gather-evidence")


# ---- compositions --------------------------------------------------------------------------------


def decide_compositions(evidence: Evidence) -> Verdict:
    """The verdict on scored compositions, without the reasons of weights and coverage."""
    return unanswered(evidence) if nothing_answers(evidence) else _decide_answered(evidence)


def _decide_answered(evidence: Evidence) -> Verdict:
    """The same where some system answers more than guessing."""
    plain, steps = candidates(evidence, QUESTION), candidates(evidence, STEPS)
    if not plain and not steps:
        return Verdict("inconclusive", "evaluation", (reason_of("no-comparison"),))
    decisive = _decisive_form(evidence, plain, steps)
    other_form = steps if decisive is plain else plain
    composed, baselines = (*plain, *steps), _decide_baselines(evidence)
    chain, best = chain_candidate(evidence), decisive[0]
    # No method was tested where every composition lost too much to its rank.
    compressed = best.outcome == "unlikely" and all(candidate.lossy for candidate in decisive)
    decision: Decision = "inconclusive" if compressed else best.outcome
    gained = any(one.gain.value > evidence.margin for one in composed)
    by_baselines = decision == "inconclusive" and baselines.decision == "unlikely" and not gained
    by_chain = decision == "inconclusive" and not by_baselines and chain is not None
    by_chain = by_chain and chain_outdoes(evidence, composed)
    decision = "unlikely" if by_baselines or by_chain else decision
    advice = advise(evidence, composed, best, decision, by_chain)
    used = advice.composition
    best = used if used is not None and used.outcome == best.outcome else best
    why = [*baselines.reasons] if by_baselines else []
    why += [reasons.about_chain(chain, best, by_chain)] if chain else []
    why += reasons.about_candidate(best, decision, evidence)
    why += reasons.about_guards(evidence, best)
    why += [reasons.about_other_form(other_form[0])] if other_form else []
    limits = evidence.rank_given and (used is None or decision == "inconclusive")
    why += [reasons.about_compression(c, compressed, limits) for c in decisive if c.lossy]
    why += unsafe_but_better(evidence, advice.used)
    why += [*advice.reasons, *excluded_but_better(evidence, composed, decisive[0], advice.used)]
    if baselines.decision == "unlikely" and decision == "inconclusive":
        why += [replace(reason, severity="info") for reason in baselines.reasons]
    about = used or (None if best.system in evidence.excluded else best)
    missing = best.missing or advice.missing or (baselines.missing if by_baselines else None)
    return Verdict(
        decision,
        "evaluation",
        tuple(why),
        None if about is None else about.system,
        advice.action,
        composes=used is not None,
        missing="rank" if compressed and decision == "inconclusive" else missing,
        gain=_decisive_gain(best),
    )


def _of_first_round(verdict: Verdict, evidence: Evidence) -> Verdict:
    """A verdict on scored compositions, as that of a first round on a few items."""
    systems = evidence.systems(COMPOSITIONS)
    items = max(row.n for row in evidence.measured.scores if row.system in systems)
    asked = count(items, "item") + (" of each task" if evidence.several else "")
    names = listing(map(display_name, systems))
    why = [reason_of("first-round", float(items), systems=names, items=asked)]
    if verdict.decision == "inconclusive":
        why.append(_next_evidence("base"))
    return replace(verdict, evidence="pilot", reasons=(*verdict.reasons, *why))


def candidates(
    evidence: Evidence, part: ItemPart, kinds: Iterable[str] = COMPOSITIONS
) -> tuple[Candidate, ...]:
    """All systems of these kinds on one part, the most promising first.

    They are sorted by `ranking_outcome`, gain, `effort` (merges before routers) and `by_change`. Of
    several that are `likely` by that the first is the best one (`Evidence.leader`).
    """
    measured = [evidence.candidate(system, part) for system in evidence.systems(kinds, part)]
    ordered = sorted(
        (candidate for candidate in measured if candidate is not None),
        key=lambda c: (
            -WEAKEST_FIRST.index(c.ranking_outcome),
            -round(c.gain.value, 9),
            effort(c.system, c.kind, part),
            by_change(c.system),
        ),
    )
    likely = [c.system for c in ordered if c.ranking_outcome == "likely"]
    best = evidence.leader(evidence.scored(likely, [part]))
    first = best.system if best is not None else None
    return tuple(sorted(ordered, key=lambda c: c.system != first))


def _decisive_form(
    evidence: Evidence, plain: tuple[Candidate, ...], steps: tuple[Candidate, ...]
) -> tuple[Candidate, ...]:
    """The form that the decision is about: the one with the better outcome, then the larger gain.

    Where both are `likely` it is the form of the better one (`advice`). Else a gain step by
    step has to be larger than a plain one by more than a tie.
    """
    if not (plain and steps):
        return plain or steps
    first, second = plain[0], steps[0]
    if first.ranking_outcome != second.ranking_outcome:
        return max(plain, steps, key=lambda form: WEAKEST_FIRST.index(form[0].ranking_outcome))
    if first.ranking_outcome == "likely":
        best = evidence.leader(evidence.scored_candidates((first, second)))
        return steps if best is not None and best.part == STEPS else plain
    return steps if second.gain.value > first.gain.value + evidence.tie else plain


def chain_candidate(evidence: Evidence) -> Candidate | None:
    """The chain's gain over the best of base and single adapters on the plain question."""
    return next(iter(candidates(evidence, QUESTION, ("chain",))), None)


def chain_outdoes(evidence: Evidence, composed: Iterable[Candidate]) -> bool:
    """Whether a chain is shown to be better than every other system by more than the margin.

    False if some composition measured a gain above the margin, too few items were asked, or the
    chain loses a guard.
    """
    composed, chains = list(composed), evidence.scored(["chain"], [QUESTION])
    if (
        "chain" in evidence.measured.unsafe
        or not chains
        or not composed
        or any(c.gain.value > evidence.margin for c in composed)
    ):
        return False
    others = [*evidence.scored_alone(), *evidence.scored_candidates(composed)]
    gains = [evidence.difference(chains[0], other, adjusted=True) for other in others]
    return composed[0].enough == "likely" and all(gain.low > evidence.margin for gain in gains)


def _decisive_gain(best: Candidate) -> DecisiveGain:
    gain, ci95 = best.gain, (best.gain.low, best.gain.high)
    return DecisiveGain(best.system, best.part, best.against, gain.value, ci95, gain.n)
