"""The words of the answer: its headline and its labelled lines, from the records of an audit."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from loraprobe.defaults import FEWEST_ITEMS
from loraprobe.formatting import count, listing
from loraprobe.records import (
    AdapterSummary,
    Audit,
    DecisiveGain,
    Gain,
    Issue,
    Reason,
    Verdict,
)
from loraprobe.report.formatting import number
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict import merge_and_eval_command

Line = tuple[str, str]
MOST_REASONS = 3
ENOUGH = 100  # questions with which half a 95 % interval of a share is 0.10
# Codes of reasons about the form of the question that the decision is not about.
OTHER_FORM = ("step-by-step-form", "plain-form")
# Codes of reasons that say why a decision is not `likely`.
WHY = (
    "retention-lost",
    "retention-undecided",
    "retention-undefined",
    "compression-lost",
    "mostly-step-by-step",
    "mostly-unknown",
    "mostly-interference",
    "mostly-not-composed",
    "partner-adds-nothing",
    "disjoint-hops",
    "hop-unknown-to-all",
    "nothing-to-gain",
    "no-comparison",
    *OTHER_FORM,
    "probes-familiar",
    "probes-mixed",
    "probes-unfamiliar",
)
# Codes of reasons that warn, the more important first.
WATCH = (
    "few-items",
    "template-matters",
    "nearly-equal-updates",
    "norm-disparity",
    "opposed-updates",
    "large-update",
    "probes-too-few",
    "controls-not-run",
    "shared-initialisation",
)
LACKS = ("steps-missing", "hops-missing")  # what the items do not have
SKILLS = "one model that keeps all skills"


def headline(audit: Audit) -> str:
    """The decision in words that a stranger understands."""
    verdict = audit.verdict
    if verdict is None:
        return _without_verdict(audit)
    if verdict.decision == "incompatible":
        return "INCOMPATIBLE: these adapters cannot be composed as they are."
    if verdict.evidence == "weights":
        done = "MERGED" if audit.command == "merge" else "FIT TOGETHER"
        what = "Whether the merge helps" if audit.command == "merge" else "Whether composing helps"
        return f"{done}{_warnings(audit)}. {what} needs a task."
    several = len({row.task for row in audit.evaluation}) > 1
    return f"{verdict.decision.upper()}: {_meaning(verdict, several)}."


def _meaning(verdict: Verdict, several: bool) -> str:
    if verdict.decision == "likely":
        steps = verdict.gain is not None and verdict.gain.form == "steps"
        if several:
            return f"composing gives {SKILLS}"
        return "composing works" + (", asked step by step" if steps else "")
    if verdict.decision == "unlikely":
        if several:
            return f"composing does not give {SKILLS}"
        does = "does not" if verdict.evidence == "evaluation" else "will not"
        return f"composing these adapters {does} gain what you asked for"
    if verdict.evidence == "evaluation":
        if verdict.gain is None:
            return "these scores do not decide whether composing works"
        return f"{count(verdict.gain.n, 'question')} do not decide whether composing works"
    asked = (
        "probes tell what the base knows"
        if verdict.evidence == "probes"
        else ("base and single adapters leave it open")
    )
    return f"{asked}; no composition was measured"


def _without_verdict(audit: Audit) -> str:
    fits = audit.compatibility.compatible
    if len(audit.adapters) == 1 and audit.command == "inspect":
        row = audit.adapters[0]
        kind = f"{row.name}: {row.variant}, rank {ranks(row)}, {count(row.modules, 'module')}"
        state = "" if fits else " It cannot be used as it is."
        return f"{kind} of {row.base_model or 'an unnamed base'}{_warnings(audit)}.{state}"
    what = {"merge": "MERGED", "route": "COMPOSED"}.get(audit.command, "FIT TOGETHER")
    return f"{what}{_warnings(audit)}." if fits else "INCOMPATIBLE."


def _warnings(audit: Audit) -> str:
    reasons = audit.verdict.reasons if audit.verdict else ()
    found = sum(reason.code in WATCH for reason in reasons)
    found += sum(issue.severity == "warning" for issue in audit.compatibility.issues)
    return f", {count(found, 'warning')}" if found else ""


def labelled(audit: Audit) -> Iterator[Line]:
    """The lines of the answer with their labels."""
    verdict = audit.verdict
    if audit.command in ("merge", "route") and audit.notes:
        yield "made", audit.notes[-1]
    if verdict is None:
        yield from _issues(audit, MOST_REASONS)
        base = next((row.base_model for row in audit.adapters), None)
        if audit.command == "inspect" and base:
            yield "next", shlex.join(["loraprobe", "find", base])
        return
    if verdict.decision == "incompatible":
        yield from _conflicts(audit)
    elif verdict.evidence in ("weights", "probes"):
        yield from _limits(audit, verdict)
        yield from _known(verdict)
    else:
        yield "use", _use(audit, verdict)
        yield "gain", _gain(audit, verdict)
        yield "better", _better(audit, verdict)
        yield "decide", _decide(audit, verdict)
        yield from _limits(audit, verdict)
        yield "sure", _sure(verdict)
        yield "forecast", _forecast(verdict)
    yield "next", verdict.next
    if verdict.evidence == "weights" and verdict.decision != "incompatible":
        yield "questions", merge_and_eval_command(verdict.next)


def _use(audit: Audit, verdict: Verdict) -> str:
    """What to use, with its score and that of the composition where both were measured."""
    head, _, single = verdict.action.partition(":")
    best = verdict.gain
    composed = ""
    if best is not None:
        composed = f" against {_score(audit, best.system, best.form)} for {best.system}"
    if head in ("merge", "route", "step-by-step") and verdict.decision == "likely":
        kind = next((s.kind for s in audit.evaluation if s.system == verdict.system), "merge")
        form = f", {fmt.PART[best.form]}" if best is not None else ""
        return f"{verdict.system} (a {kind}){form}"
    if head == "chain":
        scored = _score(audit, "chain", "question")
        measured = f": {scored}{composed}" if scored != "-" else ""
        return f"a chain, each hop by its own adapter{measured}"
    if head == "use-single":
        form = _better_form(audit, single)
        return f"{single} alone, {fmt.PART[form]}: {_score(audit, single, form)}{composed}"
    if head == "use-base":
        base = next((s.system for s in audit.evaluation if s.kind == "base"), "base")
        return f"the base alone: {_score(audit, base, _better_form(audit, base))}{composed}"
    if head == "gather-evidence":
        return _meanwhile(audit)
    return {
        "switch-adapters": "each task's own adapter, one at a time" + _own_scores(audit),
        "train-target-adapter": "none of these: train one adapter on what you ask",
        "step-by-step": "none of these yet: ask step by step, with a cot_prompt in the items",
        "route": "none of these yet: route instead of merging",
    }.get(head, head)


def _meanwhile(audit: Audit) -> str:
    """The best of base and single adapters, which is what to use until more is known."""
    names = dict.fromkeys(s.system for s in audit.evaluation if s.kind in ("base", "adapter"))
    forms = [(name, _better_form(audit, name)) for name in names]
    if not forms:
        return ""
    name, form = max(forms, key=lambda one: _mean(audit, *one) or 0.0)
    if _mean(audit, name, form) == 0 and audit.evaluation[0].metric != "answer_loss":
        return "nothing yet: nobody alone answers a question; ask as the adapters were trained"
    who = "the base" if name == "base" else f"{name} alone"
    return f"until then {who}, {fmt.PART[form]}: {_score(audit, name, form)}"


def _own_scores(audit: Audit) -> str:
    """Each task's best single adapter with its score, and the composition's."""
    best, told = audit.verdict.gain if audit.verdict else None, []
    for task in dict.fromkeys(s.task for s in audit.evaluation):
        rows = [s for s in audit.evaluation if s.task == task and s.part == "question"]
        own = max((s for s in rows if s.kind == "adapter"), key=lambda s: s.value, default=None)
        made = next((s for s in rows if best is not None and s.system == best.system), None)
        if own is not None:
            other = f" ({made.system} {number(made.value)})" if made is not None else ""
            told.append(f"{own.system} {number(own.value)}{other}")
    return f": {listing(told)}" if 0 < len(told) < 4 else ""


def _gain(audit: Audit, verdict: Verdict) -> str:
    best = verdict.gain
    if best is None:
        return ""
    row = next(
        (g for g in audit.gains if (g.system, g.part, g.n) == (best.system, best.form, best.n)),
        None,
    )
    form = row.against_part if row is not None else best.form
    alone = "the base" if best.against == "base" else f"{best.against}, the best alone"
    asked = f", {fmt.PART[form]}" if form != best.form else ""
    mean = "mean " if len({s.task for s in audit.evaluation}) > 1 else ""
    return (
        f"{mean}{_score(audit, best.system, best.form)} for {best.system} against "
        f"{_score(audit, best.against, form)} for {alone}{asked}: "
        f"{fmt.gain(best.difference, *best.ci95)} on {count(best.n, 'question')}; you asked for "
        f"{fmt.number(verdict.margin)}"
    )


def _better(audit: Audit, verdict: Verdict) -> str:
    """A chain that was measured to score more than what is advised."""
    chain, best = _mean(audit, "chain", "question"), verdict.gain
    if chain is None or best is None or verdict.action == "chain":
        return ""
    used, form = best.system, best.form
    if verdict.action.startswith("use-single:"):
        used = verdict.action.partition(":")[2]
        form = _better_form(audit, used)
    if chain <= (_mean(audit, used, form) or 0.0) or verdict.action == "use-base":
        return ""
    return f"a chain scores {number(chain)}, if you can ask hop after hop"


def _decide(audit: Audit, verdict: Verdict) -> str:
    """How much more evidence would decide."""
    best = verdict.gain
    if verdict.decision != "inconclusive" or best is None:
        return ""
    if any(r.code == "compression-lost" and r.severity == "decisive" for r in verdict.reasons):
        return "a higher --rank: no method was tested at this one"
    row = _most_promising(audit, best)
    if row is None:
        return ""  # the gain is decided; the reasons say what is not
    if row.n_needed and row.n_needed > row.n:
        most = f"{max(row.n_needed, FEWEST_ITEMS):,}"
        return f"about {most} questions {fmt.PART[row.part]} (you gave {row.n}), if the gain stays"
    few = f"at least {ENOUGH}" if row.n < ENOUGH else "many more"
    return f"{few} questions (you gave {row.n}): the interval holds {number(verdict.margin)}"


def _most_promising(audit: Audit, best: DecisiveGain) -> Gain | None:
    """The largest gain of a merge or router, on any form, that is still open; None if none is."""
    composed = {s.system for s in audit.evaluation if s.kind in ("merge", "router")}
    margin = audit.verdict.margin if audit.verdict else 0.0
    rows = [
        row
        for row in audit.gains
        if row.system in composed
        and row.n >= best.n
        and row.adjusted_ci95[0] <= margin <= row.adjusted_ci95[1]
    ]
    return max(rows, key=lambda row: row.difference, default=None)


def _limits(audit: Audit, verdict: Verdict) -> Iterator[Line]:
    """At most three reasons: why, what to watch, and what the adapters' findings warn of."""
    why = sorted(
        (r for r in verdict.reasons if r.code in WHY and _explains(r, verdict)),
        key=lambda r: (r.severity != "decisive", WHY.index(r.code)),
    )
    watch = sorted(
        (r for r in verdict.reasons if r.code in WATCH), key=lambda r: WATCH.index(r.code)
    )
    lacks = [r for r in verdict.reasons if r.code in LACKS]
    found = [("why", r.message) for r in why[:2]]
    found += [("watch", r.message) for r in (*watch, *lacks)]
    if verdict.evidence == "weights" and len(found) < MOST_REASONS:
        found += [("watch", r.message) for r in verdict.reasons if r.code == "unrelated-updates"]
    yield from found[:MOST_REASONS]
    yield from _issues(audit, MOST_REASONS - len(found))


def _explains(reason: Reason, verdict: Verdict) -> bool:
    """Whether a reason explains the decision: of an open one, only what keeps it open does."""
    best = verdict.gain
    if reason.code in OTHER_FORM:
        return (
            verdict.decision == "inconclusive"
            and best is not None
            and (reason.value or 0.0) > best.difference
        )
    if verdict.evidence != "evaluation" or verdict.decision != "inconclusive":
        return True
    return reason.severity == "decisive" or reason.code.startswith(("retention", "compression"))


def _sure(verdict: Verdict) -> str:
    """That a composition that works owes it to its partner."""
    beaten = next((r for r in verdict.reasons if r.code == "controls-beaten"), None)
    return beaten.message if beaten is not None and verdict.decision == "likely" else ""


def _issues(audit: Audit, most: int) -> Iterator[Line]:
    """Findings as lines: errors, warnings, then what licences ask."""
    order = {"error": 0, "warning": 1, "note": 2}
    told = [
        issue
        for issue in sorted(audit.compatibility.issues, key=lambda i: order[i.severity])
        if issue.severity != "note" or issue.code.startswith("licence")
    ]
    for issue in told[: max(0, most)]:
        yield "watch", first_sentence(issue)


def _conflicts(audit: Audit) -> Iterator[Line]:
    errors = [i for i in audit.compatibility.issues if i.severity == "error"]
    for issue in errors[:2]:
        yield "why", f"{issue.code}: {first_sentence(issue)}"
        yield "fix", issue.cure
    if len(errors) > 2:
        yield "why", f"and {count(len(errors) - 2, 'more conflict')}"


def first_sentence(issue: Issue) -> str:
    """What a finding says, without what follows from it."""
    return re.split(r"(?<=\.)\s|;\s(?=an\s)", issue.message, maxsplit=1)[0]


def _known(verdict: Verdict) -> Iterator[Line]:
    for reason in verdict.reasons:
        if reason.code == "measured-elsewhere":
            yield "known", f"{reason.message[0].lower()}{reason.message[1:-1]} (arXiv 2602.12323)"


def _forecast(verdict: Verdict) -> str:
    """The forecast with its interval, and the probability of the printed decision."""
    found = verdict.forecast
    if found is None:
        return ""
    told = f"before composing: {fmt.gain(found.gain, *found.ci95)}"
    if verdict.probability is not None:
        return f"{told}; {verdict.decision} with probability {_share(verdict.probability)}"
    if found.probability is not None and verdict.evidence == "base":
        return (
            f"{told} if effects simply added; probability {fmt.number(found.probability)} that "
            f"some composition gains {fmt.number(verdict.margin)}"
        )
    return told


def _share(probability: float) -> str:
    """A probability with two decimals, which are never those of certainty."""
    if 0.995 <= probability < 1:
        return "above 0.99"
    return "below 0.01" if 0 < probability < 0.005 else fmt.number(probability)


def ranks(row: AdapterSummary) -> str:
    """The rank of an adapter, or its smallest and largest."""
    low, high = row.rank["min"], row.rank["max"]
    return str(low) if low == high else f"{low}–{high}"


def _better_form(audit: Audit, system: str) -> str:
    """The form of the question in which a system scores more."""
    plain, steps = (_mean(audit, system, form) for form in ("question", "steps"))
    return "steps" if steps is not None and (plain is None or steps > plain) else "question"


def _mean(audit: Audit, system: str, part: str) -> float | None:
    """The mean over tasks of a system's scores; losses with their sign turned."""
    rows = [s for s in audit.evaluation if (s.system, s.part) == (system, part)]
    values = [-s.value if s.metric == "answer_loss" else s.value for s in rows]
    return sum(values) / len(values) if values else None


def _score(audit: Audit, system: str, part: str) -> str:
    mean = _mean(audit, system, part)
    return "-" if mean is None else number(abs(mean))
