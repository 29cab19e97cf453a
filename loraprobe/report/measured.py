"""The lines of an answer about systems that were asked: what to use, what that gains, and how sure
the answer is."""

from __future__ import annotations

from collections.abc import Iterator

from loraprobe.defaults import MARGIN
from loraprobe.formatting import count, digits_beside, gained, listing, probability
from loraprobe.records import (
    BY_PROMPT,
    BY_TEXT,
    STEPS,
    Audit,
    Rounds,
    Verdict,
    display_name,
    example,
    references,
)
from loraprobe.report.headline import tells_probability
from loraprobe.report.limits import clause, limits, of_extensions, said
from loraprobe.report.parts import AlwaysShown, Line
from loraprobe.verdict.advice import Basis, basis_of
from loraprobe.verdict.evidence import WEAKEST_FIRST
from loraprobe.verdict.next_command import may_stop
from loraprobe.verdict.reasons import named_in, on_guard, without_form
from loraprobe.verdict.unanswered import SHOWN, closest

LONGEST = 100  # characters of a question or a reply
ROUNDING = 1e-9  # two scores differ by their difference up to this
ENOUGH = 100  # questions with which half a 95 % interval of a share is 0.10


def after_round(rounds: Rounds) -> str:
    """When a run stopped."""
    return f"after round {rounds.used} of {rounds.planned}"


def about_systems(audit: Audit, verdict: Verdict) -> Iterator[Line]:
    """What was measured of systems: what to use, what it gains, and how sure that is."""
    measured = basis_of(verdict, audit.evaluation)
    if verdict.missing == "answers":
        yield from _replied(audit)
    else:
        yield "use", _use(audit, verdict, measured)
    yield "output", clause(verdict, "nothing-written")
    yield "tried", said(verdict, "tried").rstrip(".")
    yield "gain", _gain(audit, verdict)
    yield "guard", _guard(audit, verdict)
    rounds = audit.evaluation.rounds
    decided = audit.command != "inspect" and verdict.missing != "time"
    if rounds is not None and rounds.early and decided:
        yield "stopped", f"{after_round(rounds)}; --all-items asks the rest"
    yield from of_extensions(audit)
    yield "close", AlwaysShown(_named_without_form(audit, verdict))
    yield "close", said(verdict, "right-together").rstrip(".")
    yield "by text", said(verdict, "by-text").rstrip(".")
    yield "or", clause(verdict, "on-any-server")
    codes = ("not-told-apart", "on-any-server", "as-good")
    close = next((code for code in codes if code in verdict.codes), "")
    yield "close", "" if close == "on-any-server" else said(verdict, close).rstrip(".")
    yield "better", _better(audit, verdict, measured)
    yield "decide", _decide(audit, verdict, measured)
    yield from limits(audit, verdict)
    if verdict.decision == "likely":  # what shows that the partner matters
        yield "controls", said(verdict, "controls-beaten")
    # After every question was asked it is no forecast.
    label = "how sure" if verdict.evidence == "evaluation" else "forecast"
    yield label, AlwaysShown(_certainty(audit, verdict))
    yield "known", clause(verdict, "measured-elsewhere")  # beside an open verdict


def _replied(audit: Audit) -> Iterator[Line]:
    """A question that nothing answers, with its gold answer and the closest replies."""
    names = [one.system for one in closest(audit.evaluation)]
    for sample in audit.samples[:1]:
        said = {reply.system: reply for reply in sample.replies}
        yield "question", _one_line(sample.question)
        yield "gold", " or ".join(map(_one_line, sample.gold))
        for name in [name for name in names if name in said][:SHOWN]:
            text = _one_line(said[name].text) or "nothing"
            cut = ", cut at the limit of tokens" if said[name].cut else ""
            yield "replied", f"{text} ({name}{cut})"


def _named_without_form(audit: Audit, verdict: Verdict) -> str:
    """Who names far more right answers than anything gives in their form, with one reply."""
    sentence = said(verdict, "right-without-form").rstrip(".")
    named = without_form(audit.evaluation)
    replies = [reply for sample in audit.samples if (reply := named_in(sample, named))]
    return (
        f"{sentence} (it replies {_one_line(replies[0])!r})" if sentence and replies else sentence
    )


def _one_line(text: str) -> str:
    """A question or a reply in one line, which is cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"


def _use(audit: Audit, verdict: Verdict, measured: Basis) -> str:
    """What to use, with its score and that of the composition where both were measured."""
    head, used, best = verdict.action.kind, measured.used, verdict.gain
    open_ = verdict.decision == "inconclusive" and not verdict.compositions_not_asked
    so_far = "so far " if open_ else ""
    score = f": {used.shown:z.2f}" if used is not None else ""
    if used is not None and verdict.composes:
        chooses = "router that chooses an adapter for each prompt"
        kinds = {BY_PROMPT: chooses, BY_TEXT: "router that chooses an adapter by a prompt's text"}
        kind = kinds.get(display_name(used.system).partition(" ")[0], used.kind)
        decides = best is not None and (best.system, best.form) == (used.system, used.part)
        form = f",{used.in_form}" if used.in_form else ""
        return f"{so_far}{display_name(used.system)} (a {kind}){form}{'' if decides else score}"
    other = measured.best if head == "chain" else measured.composed
    if score and best is not None and other is not None and best.system != "chain":
        score += f" against {other.shown:z.2f} for {display_name(other.system)}"
        score += other.in_form if head == "chain" and other.part == STEPS else ""
    form = used.in_form if used is not None else ""
    if used is not None and used.kind in references():
        return f"{so_far}{used}{score}"
    who = {
        "chain": f"{so_far}a chain, {_hops(audit) or 'each hop by whoever answers it best'}",
        "use-single": f"{so_far}{verdict.action.adapter} alone{form}",
        "use-base": f"{so_far}the base alone",
        "switch-adapters": f"{so_far}{_each_task(verdict)}, one at a time",
        "gather-evidence": "nothing yet: "
        + (
            "what answers loses a guard, and what keeps every guard is not shown to answer"
            if "better-is-unsafe" in verdict.codes
            else "nothing that was measured is shown to answer"
        ),
        "train-target-adapter": "none of these: train one adapter on what you ask",
        "step-by-step": "none of these yet: ask step by step, with a cot_prompt in the items",
    }
    return who.get(head, head) + ("" if head == "switch-adapters" else score)


def _each_task(verdict: Verdict) -> str:
    """Who answers which task, where each gets the best of base and single adapters."""
    tasks: dict[str, list[str]] = {}
    for task, system in verdict.by_task.items():
        tasks.setdefault("the base" if system == "base" else system, []).append(task)
    told = [f"{who} for {listing(names)}" for who, names in tasks.items()]
    return ", ".join(told) or "each task's own adapter"


def _hops(audit: Audit) -> str:
    """Who answers which hop of a chain that was measured."""
    who = [(row.hop, row.adapter) for row in example(audit.evaluation.chain)]
    return ", ".join(f"hop {k}: {'the base' if name == 'base' else name}" for k, name in who)


def _gain(audit: Audit, verdict: Verdict) -> str:
    """The decisive gain with its interval, against whom, and on how many questions."""
    best, rounds = verdict.gain, audit.evaluation.rounds
    if best is None:
        return ""
    measured, asked = basis_of(verdict, audit.evaluation), f"you asked for {verdict.margin:.2f}"
    composed, baseline = measured.composed, measured.baseline
    of_all = count(best.n, "question")
    if composed is None or baseline is None or verdict.evidence == "pilot":
        # In a first round the base and single adapters answered more questions.
        own = gained(best.difference, best.ci95, threshold=verdict.margin)
        gain = f"{own} for {display_name(best.system)}"
        return f"{gain} against {best.against}, in a first round on {of_all}; {asked}"
    if rounds is not None and best.n == rounds.items < rounds.total:
        of_all = f"{best.n} of {count(rounds.total, 'question')}"
    alone = "the base" if best.against == "base" else f"{best.against}, the best alone"
    two_forms = baseline.part != best.form
    alone += f", {baseline.form}" if two_forms else ""
    composed_as = display_name(best.system) + (f", {composed.form}," if two_forms else "")
    mean = "mean " if len(audit.evaluation.tasks) > 1 else ""
    digits = max(
        _agreeing(composed.score.value, baseline.score.value, best.difference),
        digits_beside(verdict.margin, best.difference, *best.ci95),
    )
    return (
        f"{mean}{composed.shown:z.{digits}f} for {composed_as} against "
        f"{baseline.shown:z.{digits}f} for {alone}: {gained(best.difference, best.ci95, digits)} "
        f"on {of_all}; {asked}"
    )


def _guard(audit: Audit, verdict: Verdict) -> str:
    """What is advised, or else what guards decide on, makes of the guard that it keeps least."""
    about = verdict.system if verdict.decision == "likely" else verdict.used
    deciding = {reason.code for reason in verdict.reasons if reason.severity == "decisive"}
    if verdict.gain is not None and deciding and deciding <= {"guard-lost", "guard-open"}:
        about = verdict.gain.system
    own = [row for row in audit.evaluation.guards if row.system == about]
    if not own:
        return ""
    own.sort(key=lambda row: (WEAKEST_FIRST.index(row.outcome), row.difference + row.margin))
    others = f"; {count(len(own) - 1, 'other guard')}: --explain" if len(own) > 1 else ""
    return f"{on_guard(own[0])}{others}"


def _agreeing(own: float, other: float, difference: float) -> int:
    """The digits of two scores and their difference: two where they agree so, else three."""
    agree = f"{round(own, 2) - round(other, 2):z.2f}" == f"{difference:z.2f}"
    return 2 if agree or abs(own - other - difference) > ROUNDING else 3


def _better(audit: Audit, verdict: Verdict, measured: Basis) -> str:
    """A chain that scores more than what is advised, which takes one call, and loses no guard."""
    chain, used, tie = measured.chain, measured.used, min(verdict.margin, MARGIN)
    if chain is None or used is None or chain.score.value - used.score.value <= tie:
        return ""
    if chain.system in audit.evaluation.unsafe:  # which the line `why` tells
        return ""
    hops = f" ({_hops(audit)})" if audit.evaluation.chain else ""
    return f"a chain{hops} scores {chain.score.value:.2f}, if you can ask hop after hop"


def _decide(audit: Audit, verdict: Verdict, measured: Basis) -> str:
    """How much more evidence would decide, and that the next command may not be enough."""
    gain, early = measured.gain, verdict.evidence in ("base", "pilot")
    if verdict.decision != "inconclusive":
        return ""
    if verdict.missing == "time":
        return "more minutes; --resume asks nothing twice"
    if verdict.missing == "rank":
        limits = "--rank" in said(verdict, "compression-lost")
        what = "a higher --rank" if limits else "a method that loses nothing to its rank"
        return "" if early else f"{what}: no method was tested at this one"
    if gain is None or gain.outcome != "inconclusive" or may_stop(verdict):
        return ""  # the gain is decided, or there is no hope of it
    if "few-items" in verdict.codes:
        return ""  # it says how many are asked for first
    given = sum(task.items for task in audit.provenance.tasks) if early else gain.clusters
    if early and (not given or (gain.needed is not None and gain.needed <= given)):
        return ""  # the next command asks them
    more, gave = gain.more("question"), f"(you gave {given})"
    if gain.needed is not None:
        form = " step by step" if measured.composed and measured.composed.part == "steps" else ""
        if gain.clusters < gain.n:
            gave += ", if the adapters know more than these; else nothing decides it"
        return f"{more}{form} {gave}" + ("" if gain.clusters < gain.n else ", if the gain stays")
    if gain.n < ENOUGH:
        return f"at least {ENOUGH} questions {gave}: the interval holds {verdict.margin:.2f}"
    sentence = f"{more} {gave} for a gain of {verdict.margin:.2f}"
    return "; ".join(filter(None, (sentence, gain.decided_thresholds())))


def _certainty(audit: Audit, verdict: Verdict) -> str:
    """The probability of the printed decision; of a gain where nothing is decided.

    Empty where the headline has it.
    """
    if tells_probability(verdict):
        return ""
    if verdict.probability is not None:
        return f"{verdict.decision} with probability {probability(verdict.probability)}"
    if verdict.decision == "inconclusive" and verdict.gain and verdict.gain.probability:
        kept = " with every skill kept" if len(audit.evaluation.tasks) > 1 else ""
        kept += " with every guard kept" if audit.provenance.guards else ""
        gain = f"a gain above {verdict.margin:.2f}{kept}"
        stop = ": you may stop here" if may_stop(verdict) else ""
        return f"probability {probability(verdict.gain.probability)} of {gain}{stop}"
    return ""
