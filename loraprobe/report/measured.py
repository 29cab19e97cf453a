"""The lines of the answer that tell what was measured: use, gain, stopped, better, forecast."""

from __future__ import annotations

from loraprobe.formatting import count, listing, number
from loraprobe.records import FORMS, Audit, Gain, Verdict
from loraprobe.verdict import Evidence
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.advice import PER_PROMPT
from loraprobe.verdict.evaluated import estimate_of
from loraprobe.verdict.next_command import to_fill_in, words_of
from loraprobe.verdict.ranking import alone, best_option, option

ROUNDING = 1e-9  # two scores differ by their difference up to this
ENOUGH = 100  # questions with which half a 95 % interval of a share is 0.10


def use(audit: Audit, verdict: Verdict) -> str:
    """What to use, with its score and that of the composition where both were measured."""
    head, _, single = verdict.action.partition(":")
    best = verdict.gain
    composed = ""
    if best is not None:
        composed = f" against {_score(audit, best.system, best.form)} for {best.system}"
    codes = {reason.code for reason in verdict.reasons}
    if verdict.composes:
        kind = next((s.kind for s in audit.evaluation if s.system == verdict.system), "merge")
        if PER_PROMPT in (verdict.system or ""):
            kind += " that chooses by prompt"
        plain = all(row.part != "steps" for row in audit.evaluation)  # there is no other form
        form = "" if best is None or plain else f", {fmt.PART[best.form]}"
        return f"{verdict.system} (a {kind}){form}"
    if head == "chain":
        scored = _score(audit, "chain", "question")
        measured = f": {scored}{composed}" if scored != "-" else ""
        return f"a chain, each hop by whoever answers it best{measured}"
    if head == "use-single":
        form = _better_form(audit, single)
        return f"{single} alone, {fmt.PART[form]}: {_score(audit, single, form)}{composed}"
    if head == "use-base":
        base = next((s.system for s in audit.evaluation if s.kind == "base"), "base")
        return f"the base alone: {_score(audit, base, _better_form(audit, base))}{composed}"
    if head == "gather-evidence":
        return _meanwhile(audit, verdict)
    if "adapters-complement" in codes and head == "route":
        meanwhile = _meanwhile(audit, verdict)
        tail = f"; {meanwhile}" if meanwhile.startswith("until") else ""
        return f"none of these yet: choose the adapter by prompt{tail}"
    return {
        "switch-adapters": "each task's own adapter, one at a time" + _own_scores(audit, verdict),
        "train-target-adapter": "none of these: train one adapter on what you ask",
        "step-by-step": "none of these yet: ask step by step, with a cot_prompt in the items",
        "route": "none of these yet: route instead of merging",
    }.get(head, head)


def _meanwhile(audit: Audit, verdict: Verdict) -> str:
    """The best measured option, which is what to use until more is known.

    Of several tasks the base and the adapters alone are options, since one model may lose a skill.
    """
    measured = Evidence(
        evaluation=audit.evaluation, gains=audit.gains, comparisons=audit.comparisons
    )
    options = alone(measured)
    gain = verdict.gain
    if gain is not None and not measured.several:
        options += filter(None, [option(measured, gain.system, gain.form)])
    best = best_option(measured, options)
    if best is None:
        return ""
    if best.kind == "switch":
        return "until then each task's own adapter, one at a time" + _own_scores(audit, verdict)
    name, form = best.system, best.part
    if best.score == 0 and not measured.losses:
        return "nothing yet: nobody alone answers a question; ask as the adapters were trained"
    who = {"base": "the base", "adapter": f"{name} alone"}.get(best.kind, name)
    return f"until then {who}, {fmt.PART[form]}: {_score(audit, name, form)}"


def _own_scores(audit: Audit, verdict: Verdict) -> str:
    """Each task's best single adapter with its score, and the composition's."""
    best, told = verdict.gain, []
    for task in dict.fromkeys(s.task for s in audit.evaluation):
        rows = [s for s in audit.evaluation if s.task == task and s.part == "question"]
        own = max((s for s in rows if s.kind == "adapter"), key=lambda s: s.value, default=None)
        made = next((s for s in rows if best is not None and s.system == best.system), None)
        if own is not None:
            other = f" ({made.system} {number(made.value)})" if made is not None else ""
            told.append(f"{own.system} {number(own.value)}{other}")
    return f": {listing(told)}" if 0 < len(told) < 4 else ""


def gain(audit: Audit, verdict: Verdict) -> str:
    best = verdict.gain
    if best is None:
        return ""
    if verdict.evidence == "pilot":  # the base and single adapters answered more items
        return (
            f"{fmt.gain(best.difference, *best.ci95)} for {best.system} against {best.against}, in "
            f"a first round on {count(best.n, 'question')}; you asked for "
            f"{fmt.number(verdict.margin)}"
        )
    row = next(
        (g for g in audit.gains if (g.system, g.part, g.n) == (best.system, best.form, best.n)),
        None,
    )
    form = row.against_part if row is not None else best.form
    alone = "the base" if best.against == "base" else f"{best.against}, the best alone"
    asked = f", {fmt.PART[form]}" if form != best.form else ""
    mean = "mean " if len({s.task for s in audit.evaluation}) > 1 else ""
    own, other = _mean(audit, best.system, best.form), _mean(audit, best.against, form)
    difference, digits = _agreeing(own, other, best.difference)
    return (
        f"{mean}{_shown(own, digits)} for {best.system} against {_shown(other, digits)} for "
        f"{alone}{asked}: {fmt.gain(difference, *best.ci95, digits)} on "
        f"{_of_all(audit, best.n)}; you asked for {fmt.number(verdict.margin)}"
    )


def _of_all(audit: Audit, n: int) -> str:
    """The number of questions, and of how many where a run stopped early."""
    rounds = audit.rounds
    early = rounds is not None and n == rounds.items < rounds.total
    return f"{n} of {count(rounds.total, 'question')}" if rounds and early else count(n, "question")


def _agreeing(own: float | None, other: float | None, difference: float) -> tuple[float, int]:
    """(difference, digits) with which two scores and their difference agree as they are printed.

    Two decimals where they agree so, else three, with the difference of what is printed.
    """
    if own is None or other is None or abs(own - other - difference) > ROUNDING:
        return difference, 2
    if fmt.number(round(own, 2) - round(other, 2)) == fmt.number(difference):
        return difference, 2
    return round(own, 3) - round(other, 3), 3


def _shown(mean: float | None, digits: int = 2) -> str:
    return "-" if mean is None else fmt.number(abs(mean), digits)


def stopped(audit: Audit) -> str:
    """How far a run went that stopped before all items were asked, and how to ask the rest."""
    rounds = audit.rounds
    if rounds is None or not rounds.early:
        return ""
    return f"after look {rounds.used} of {rounds.planned}; --all-items asks the rest"


def said(verdict: Verdict, code: str) -> str:
    """The message of the reason of this code; "" without it."""
    return next((reason.message for reason in verdict.reasons if reason.code == code), "")


def better(audit: Audit, verdict: Verdict) -> str:
    """A chain that scores more than what is advised, measured or expected from the hops."""
    chain, best, verb = _mean(audit, "chain", "question"), verdict.gain, "scores"
    if chain is None:
        chain = next((r.value for r in verdict.reasons if r.code == "chain-expected"), None)
        verb = "would score about"
    if chain is None or best is None or verdict.action in ("chain", "use-base"):
        return ""
    used, form = best.system, best.form
    if verdict.action.startswith("use-single:"):
        used = verdict.action.partition(":")[2]
        form = _better_form(audit, used)
    if chain <= (_mean(audit, used, form) or 0.0):
        return ""
    return f"a chain {verb} {number(chain)}, if you can ask hop after hop"


def decide(audit: Audit, verdict: Verdict) -> str:
    """How much more evidence would decide."""
    best = verdict.gain
    if verdict.evidence in ("base", "pilot"):
        return _may_stay_open(audit, verdict)
    if verdict.decision != "inconclusive" or best is None:
        return ""
    if any(r.code == "compression-lost" and r.severity == "decisive" for r in verdict.reasons):
        return "a higher --rank: no method was tested at this one"
    row = _most_promising(audit, best.n, verdict.margin)
    if row is None or best.ci95[0] > verdict.margin:
        return ""  # the gain is decided; the reasons say what is not
    open_ = estimate_of(row, verdict.margin)
    given = f"(you gave {row.clusters or row.n})"
    if row.n_needed is None and row.n < ENOUGH:
        return f"at least {ENOUGH} questions {given}: the interval holds {number(verdict.margin)}"
    if row.n_needed is None:
        told = f"{open_.more('question')} {given} for a gain of {number(verdict.margin)}"
        return "; ".join(filter(None, (told, open_.instead())))
    form = " step by step" if row.part == "steps" else ""
    return f"{open_.more('question')}{form} {given}, if the gain stays"


def _may_stay_open(audit: Audit, verdict: Verdict) -> str:
    """After a first round: that the next command may leave it open, which asks all questions."""
    given, row = sum(t.items for t in audit.provenance.tasks), None
    if verdict.gain is None or verdict.decision == "inconclusive":
        row = _most_promising(audit, 0, verdict.margin)
    asks_them = words_of(verdict.next)[1:2] == ["merge-and-eval"] and not to_fill_in(verdict.next)
    if row is None or not given or not asks_them:
        return ""
    open_ = estimate_of(row, verdict.margin)
    if open_.needed is not None and open_.needed <= given:
        return ""
    return (
        f"merge-and-eval may be inconclusive on your {count(given, 'question')}; "
        f"{open_.more('question')} would decide, if the gain stays"
    )


def _most_promising(audit: Audit, fewest: int, margin: float) -> Gain | None:
    """The largest gain of a merge or router, on any form, that is still open; None if none is.

    fewest: it was asked at least so many items.
    """
    composed = {s.system for s in audit.evaluation if s.kind in ("merge", "router")}
    rows = [
        row
        for row in audit.gains
        if row.system in composed
        and row.n >= fewest
        and row.adjusted_ci95[0] <= margin <= row.adjusted_ci95[1]
    ]
    return max(rows, key=lambda row: row.difference, default=None)


def forecast(verdict: Verdict) -> str:
    """The forecast with its interval, and the probability of the printed decision.

    Where nothing is decided, it is the probability of a gain.
    """
    told = []
    if (found := verdict.forecast) is not None:
        told.append(f"before composing: {fmt.gain(found.gain, *found.ci95)} if effects just added")
    if verdict.probability is not None:
        told.append(f"{verdict.decision} with probability {fmt.probability(verdict.probability)}")
    elif verdict.decision == "inconclusive" and verdict.gain and verdict.gain.probability:
        chance = fmt.probability(verdict.gain.probability)
        kept = any(reason.code.startswith("retention-") for reason in verdict.reasons)
        keeping = " with every skill kept" if kept else ""
        told.append(f"probability {chance} of a gain above {fmt.number(verdict.margin)}{keeping}")
    return "; ".join(told)


def known(verdict: Verdict) -> str:
    """What measured adapter sets of the same kind gained, beside an open verdict."""
    told = said(verdict, "measured-elsewhere")
    return told[:1].lower() + told[1:-1]


def _better_form(audit: Audit, system: str) -> str:
    """The form of the question in which a system scores more."""
    plain, steps = (_mean(audit, system, form) for form in FORMS)
    return "steps" if steps is not None and (plain is None or steps > plain) else "question"


def _mean(audit: Audit, system: str, part: str) -> float | None:
    return Evidence(evaluation=audit.evaluation).mean(system, part)


def _score(audit: Audit, system: str, part: str) -> str:
    return _shown(_mean(audit, system, part))
