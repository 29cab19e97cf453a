"""The lines of the answer that tell what was measured: use, gain, stopped, better, forecast."""

from __future__ import annotations

from loraprobe.defaults import MARGIN
from loraprobe.formatting import count, listing, number
from loraprobe.records import FORMS, Audit, Gain, Verdict, example
from loraprobe.verdict import Evidence
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.evidence import gain_criterion
from loraprobe.verdict.next_command import to_fill_in, words_of

PER_PROMPT = "per=sequence"  # the option of routers that choose one adapter a prompt
ROUNDING = 1e-9  # two scores differ by their difference up to this
ENOUGH = 100  # questions with which half a 95 % interval of a share is 0.10


def use(audit: Audit, verdict: Verdict) -> str:
    """What to use, with its score and that of the composition where both were measured."""
    head, _, single = verdict.action.partition(":")
    best = verdict.gain
    composed = ""
    if best is not None and best.system != "chain":
        composed = f" against {_score(audit, best.system, best.form)} for {best.system}"
    scored = _shown(advised_score(audit, verdict))
    open_ = verdict.decision == "inconclusive" and not verdict.answers_without_composing
    so_far = "so far " if open_ else ""
    if verdict.composes:
        kind = next(
            (s.kind for s in audit.evaluation.scores if s.system == verdict.system), "merge"
        )
        if PER_PROMPT in (verdict.system or ""):
            kind += " that chooses by prompt"
        plain = all(
            row.part != "steps" for row in audit.evaluation.scores
        )  # there is no other form
        form = "" if plain else f", {fmt.PART[_form(verdict)]}"
        own = best is not None and (best.system, best.form) == (verdict.system, _form(verdict))
        return f"{so_far}{verdict.system} (a {kind}){form}" + ("" if own else f": {scored}")
    if head == "chain":
        measured = f": {scored}{composed}" if scored != "-" else ""
        return f"a chain, {_hops(audit) or 'each hop by whoever answers it best'}{measured}"
    if head == "use-single":
        form = _better_form(audit, single)
        return f"{so_far}{single} alone, {fmt.PART[form]}: {scored}{composed}"
    if head == "use-base":
        return f"{so_far}the base alone: {scored}{composed}"
    return {
        "gather-evidence": "nothing yet: nothing that was measured is shown to answer",
        "switch-adapters": f"{so_far}each task's own adapter, one at a time"
        + _own_scores(audit, verdict),
        "train-target-adapter": "none of these: train one adapter on what you ask",
        "step-by-step": "none of these yet: ask step by step, with a cot_prompt in the items",
    }.get(head, head)


def _hops(audit: Audit) -> str:
    """Who answers which hop of a chain that was measured."""
    who = [(row.hop, row.adapter) for row in example(audit.evaluation.chain)]
    return ", ".join(f"hop {k}: {'the base' if name == 'base' else name}" for k, name in who)


def _form(verdict: Verdict) -> str:
    """The form of the question in which a composition is advised."""
    return "steps" if verdict.action == "step-by-step" else "question"


def advised_score(audit: Audit, verdict: Verdict) -> float | None:
    """The mean score of what is advised; None where it is no single system, or was not measured."""
    head, _, single = verdict.action.partition(":")
    if verdict.composes:
        return _mean(audit, verdict.system or "", _form(verdict))
    if head == "chain":
        return _mean(audit, "chain", "question")
    if head == "use-base":
        single = next((s.system for s in audit.evaluation.scores if s.kind == "base"), "")
    return _mean(audit, single, _better_form(audit, single)) if single else None


def _own_scores(audit: Audit, verdict: Verdict) -> str:
    """Each task's best single adapter with its score, and the composition's."""
    best, told = verdict.gain, []
    for task in dict.fromkeys(s.task for s in audit.evaluation.scores):
        rows = [s for s in audit.evaluation.scores if s.task == task and s.part == "question"]
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
        (
            g
            for g in audit.evaluation.gains
            if (g.system, g.part, g.n) == (best.system, best.form, best.n)
        ),
        None,
    )
    form = row.against_part if row is not None else best.form
    alone = "the base" if best.against == "base" else f"{best.against}, the best alone"
    asked = f", {fmt.PART[form]}" if form != best.form else ""
    mean = "mean " if len({s.task for s in audit.evaluation.scores}) > 1 else ""
    own, other = _mean(audit, best.system, best.form), _mean(audit, best.against, form)
    difference, digits = _agreeing(own, other, best.difference)
    return (
        f"{mean}{_shown(own, digits)} for {best.system} against {_shown(other, digits)} for "
        f"{alone}{asked}: {fmt.gain(difference, *best.ci95, digits)} on "
        f"{_of_all(audit, best.n)}; you asked for {fmt.number(verdict.margin)}"
    )


def _of_all(audit: Audit, n: int) -> str:
    """The number of questions, and of how many where a run stopped early."""
    rounds = audit.evaluation.rounds
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
    rounds = audit.evaluation.rounds
    if rounds is None or not rounds.early or audit.command == "inspect":
        return ""
    return f"after look {rounds.used} of {rounds.planned}; --all-items asks the rest"


def said(verdict: Verdict, code: str) -> str:
    """The message of the reason of this code; "" without it."""
    return next((reason.message for reason in verdict.reasons if reason.code == code), "")


def better(audit: Audit, verdict: Verdict) -> str:
    """A chain that scores more than what is advised, which takes one call."""
    chain, advised = _mean(audit, "chain", "question"), advised_score(audit, verdict)
    if chain is None or advised is None or chain - advised <= min(verdict.margin, MARGIN):
        return ""
    hops = f" ({_hops(audit)})" if audit.evaluation.chain else ""
    return f"a chain{hops} scores {number(chain)}, if you can ask hop after hop"


def close(verdict: Verdict) -> str:
    """What scored more than what is advised, and is not shown to be better."""
    return said(verdict, "not-told-apart").rstrip(".")


def decide(audit: Audit, verdict: Verdict) -> str:
    """How much more evidence would decide."""
    best = verdict.gain
    if verdict.evidence in ("base", "pilot"):
        return _may_stay_open(audit, verdict)
    if verdict.decision != "inconclusive" or best is None:
        return ""
    if any(r.code == "compression-lost" and r.severity == "decisive" for r in verdict.reasons):
        return "a higher --rank: no method was tested at this one"
    row = _open_gain(audit, verdict)
    if row is None:
        return ""  # the gain is decided; the reasons say what is not
    open_ = gain_criterion(row, verdict.margin)
    given = f"(you gave {row.clusters or row.n})"
    if row.n_needed is None and row.n < ENOUGH:
        return f"at least {ENOUGH} questions {given}: the interval holds {number(verdict.margin)}"
    if row.n_needed is None:
        told = f"{open_.more('question')} {given} for a gain of {number(verdict.margin)}"
        return "; ".join(filter(None, (told, open_.decided_thresholds())))
    form = " step by step" if row.part == "steps" else ""
    return f"{open_.more('question')}{form} {given}, if the gain stays"


def _may_stay_open(audit: Audit, verdict: Verdict) -> str:
    """After a first round: that the next command may leave it open, which asks all questions."""
    given, row = sum(t.items for t in audit.provenance.tasks), None
    if verdict.gain is None or verdict.decision == "inconclusive":
        row = _open_gain(audit, verdict)
    asks_them = words_of(verdict.next)[1:2] == ["merge-and-eval"] and not to_fill_in(verdict.next)
    if row is None or not given or not asks_them:
        return ""
    open_ = gain_criterion(row, verdict.margin)
    if open_.needed is not None and open_.needed <= given:
        return ""
    return (
        f"merge-and-eval may be inconclusive on your {count(given, 'question')}; "
        f"{open_.more('question')} would decide, if the gain stays"
    )


def _open_gain(audit: Audit, verdict: Verdict) -> Gain | None:
    """The gain that the verdict is about, if its interval holds the margin."""
    best = verdict.gain
    for row in audit.evaluation.gains:
        if best is not None and (row.system, row.part, row.n) == (best.system, best.form, best.n):
            low, high = row.adjusted_ci95
            return row if low <= verdict.margin <= high else None
    return None


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
    return Evidence(audit.evaluation).mean(system, part)


def _score(audit: Audit, system: str, part: str) -> str:
    return _shown(_mean(audit, system, part))
