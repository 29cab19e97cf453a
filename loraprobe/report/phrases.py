"""The words of the answer: its headline and its labelled lines, from the records of an audit."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from loraprobe.adapters import MENDABLE
from loraprobe.formatting import count, listing, spread
from loraprobe.records import AdapterSummary, Audit, Issue, Reason, Verdict
from loraprobe.report import library, measured
from loraprobe.report.adapter_tables import by_severity, first_sentence
from loraprobe.report.library import Line
from loraprobe.verdict.next_command import merge_and_eval_command, to_fill_in, words_of
from loraprobe.verdict.reasons import CODES, effect

MOST_REASONS = 3
SERVING = "serve-"  # how the codes of findings about servers begin
LICENCE = "licence-"
FILL_IN = "fill in"  # the label of what a command names that does not exist yet
# Codes of reasons about the form of the question that the decision is not about.
OTHER_FORM = ("step-by-step-form", "plain-form")
SKILLS = "one model that keeps all skills"


def headline(audit: Audit) -> str:
    """The decision in words that a stranger understands."""
    verdict = audit.verdict
    if verdict is None and audit.library is not None:
        return library.headline(audit.library)
    if verdict is None:
        return _without_verdict(audit)
    if verdict.decision == "incompatible":
        return "INCOMPATIBLE: these adapters cannot be composed as they are."
    if verdict.evidence == "weights":
        what = "the merge" if audit.command == "merge" else "composing"
        return f"{_done(audit)}{_warnings(audit)}. Whether {what} helps needs a task."
    several = len({row.task for row in audit.evaluation.scores}) > 1
    if verdict.answers_without_composing:
        head, _, single = verdict.action.partition(":")
        who = {"use-base": "the base alone", "use-single": f"{single} alone"}
        best = f"{who.get(head, 'each task by its own adapter')} is the best of what was asked"
        best = "a chain gains what you asked for" if head == "chain" else best
        return f"MEASURED: {best}; merges and routers were not asked."
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
    if verdict.evidence == "pilot" and verdict.gain is not None:
        asked = count(verdict.gain.n, "question")
        return f"a first round on {asked} does not decide whether composing works"
    if verdict.evidence == "evaluation":
        if verdict.gain is None:
            return "these scores do not decide whether composing works"
        return f"{count(verdict.gain.n, 'question')} do not decide whether composing works"
    if verdict.gain is not None and verdict.gain.system == "chain":
        asked = count(verdict.gain.n, "question")
        return f"{asked} do not decide whether a chain gains; merges and routers were not asked"
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
        rank, modules = spread(row.rank.values()), count(row.modules, "module")
        kind = f"{row.name}: {row.variant}, rank {rank}, {modules}"
        state = "" if fits else " It cannot be used as it is."
        errors = [i for i in audit.compatibility.issues if i.severity == "error"]
        if errors and all(issue.code.startswith(SERVING) for issue in errors):
            state = " Not every server named reads it as it is."
        return f"{kind} of {row.base_model or 'an unnamed base'}{_warnings(audit)}.{state}"
    return f"{_done(audit)}{_warnings(audit)}." if fits else "INCOMPATIBLE."


def _done(audit: Audit) -> str:
    return {"merge": "MERGED", "route": "COMPOSED", "convert": "CONVERTED"}.get(
        audit.command, "FIT TOGETHER"
    )


def _warnings(audit: Audit) -> str:
    found = len(_watched(audit))
    return f", {count(found, 'warning')}" if found else ""


def labelled(audit: Audit) -> Iterator[Line]:
    """The lines of the answer with their labels."""
    verdict = audit.verdict
    if audit.command in ("merge", "route", "convert") and audit.notes:
        yield "made", audit.notes[-1]
    if verdict is None and audit.library is not None:
        lines = tuple(library.labelled(audit.library, audit.provenance))
        yield from lines
        yield FILL_IN, to_fill_in(dict(lines).get("next", ""))
        return
    if verdict is None:
        yield from _serving(audit)
        errors = [i for i in audit.compatibility.issues if i.severity == "error"]
        broken = [issue for issue in errors if not issue.code.startswith(SERVING)]
        for issue in broken[:MOST_REASONS]:
            yield "why", first_sentence(issue)
            yield "fix", "" if issue.code in MENDABLE else issue.cure
        yield from _watch(_watched(audit), MOST_REASONS)
        yield from _licences(audit)
        row = next(iter(audit.adapters), None)
        if audit.command == "inspect" and row is not None:
            yield "next", _for_one(row, {issue.code for issue in broken}, audit)
        return
    yield from _about(audit, verdict)
    yield from _licences(audit)
    yield "next" if words_of(verdict.next) else "in Python", verdict.next
    questions = ""
    if verdict.evidence == "weights" and verdict.decision != "incompatible":
        questions = merge_and_eval_command(verdict.next)
    yield "questions", questions
    yield FILL_IN, to_fill_in(questions or verdict.next)


def _about(audit: Audit, verdict: Verdict) -> Iterator[Line]:
    """The lines that lead to the next command."""
    if verdict.decision == "incompatible":
        yield from _conflicts(audit)
    elif verdict.evidence in ("weights", "probes"):
        yield from _limits(audit, verdict)
        yield "known", measured.known(verdict)
    else:
        yield "use", measured.use(audit, verdict)
        yield "gain", measured.gain(audit, verdict)
        yield "stopped", measured.stopped(audit)
        chosen = measured.said(verdict, "chosen-from-library")
        yield "chosen", chosen.removeprefix("Chosen ").rstrip(".")
        yield "close", measured.close(verdict)
        yield "better", measured.better(audit, verdict)
        yield "decide", measured.decide(audit, verdict)
        yield from _limits(audit, verdict)
        if verdict.decision == "likely":  # what shows that the partner matters
            yield "sure", measured.said(verdict, "controls-beaten")
        # After every question was asked it is no forecast.
        label = "forecast" if verdict.evidence != "evaluation" else "how sure"
        yield label, measured.forecast(verdict)
        yield "known", measured.known(verdict)


def _limits(audit: Audit, verdict: Verdict) -> Iterator[Line]:
    """At most three reasons: why, what to watch, and what the adapters' findings warn of."""
    why = [r for r in _told("why", verdict.reasons) if _explains(r, verdict)]
    why.sort(key=lambda r: r.severity != "decisive")
    found = [("why", r.message) for r in why[:2]]
    watched, left = _watched(audit), MOST_REASONS - len(found)
    found += _watch(watched if verdict.evidence == "weights" else watched[:left], left)
    lacks = [("lacks", r.message) for r in _told("lacks", verdict.reasons)]
    yield from [*found, *lacks[: max(0, MOST_REASONS - len(found))]]
    if verdict.evidence == "weights":
        yield from (("also", r.message) for r in verdict.reasons if r.code == "unrelated-updates")


def _told(line: str, reasons: Sequence[Reason]) -> list[Reason]:
    """The reasons that this line of the answer tells, those of the largest effect first."""
    found = [r for r in reasons if r.code in CODES and CODES[r.code].line == line]
    return sorted(found, key=lambda reason: effect(reason.code))


def _explains(reason: Reason, verdict: Verdict) -> bool:
    """Whether a reason explains the decision: of an open one, only what keeps it open does."""
    best = verdict.gain
    if reason.code in OTHER_FORM:
        return (
            verdict.decision == "inconclusive"
            and best is not None
            and (reason.value or 0.0) > best.difference
        )
    if verdict.evidence not in ("pilot", "evaluation") or verdict.decision != "inconclusive":
        return True
    return reason.severity == "decisive" or reason.code.startswith(("retention", "compression"))


def _serving(audit: Audit) -> Iterator[Line]:
    """What servers do not read as it is, each cure once, and the commands of those that do."""
    told = [issue for issue in audit.compatibility.issues if issue.code.startswith(SERVING)]
    wrong = [issue for issue in told if issue.severity == "error"]
    wrong = wrong or [issue for issue in told if issue.severity == "warning"]
    for issue in wrong[:MOST_REASONS]:
        yield "why", issue.message
    for cure in dict.fromkeys(issue.cure for issue in wrong):
        yield "fix", cure
    if fit := [issue for issue in told if issue.severity == "note"]:
        yield "reads it", listing(issue.message.partition(" reads it")[0] for issue in fit)
        for issue in fit:
            yield "serve", issue.cure


def _watched(audit: Audit) -> list[str]:
    """What to watch: reasons of the verdict, then warnings among the findings, without those that
    a reason tells too, and without licences."""
    reasons = audit.verdict.reasons if audit.verdict is not None else ()
    codes = {reason.code for reason in reasons}
    twice = {"duplicate"} if codes & {"nearly-equal-updates", "same-adapter"} else set()
    warned = [
        issue
        for issue in audit.compatibility.issues
        if issue.severity == "warning"
        and issue.code not in twice
        and not issue.code.startswith((LICENCE, SERVING))
    ]
    return [r.message for r in _told("watch", reasons)] + [_with_cure(i) for i in warned]


def _watch(texts: Sequence[str], most: int) -> list[Line]:
    """Warnings as lines: all of them, or the first and how many more the headline counts."""
    shown = texts if len(texts) <= most else texts[: max(1, most - 1)]
    more = len(texts) - len(shown)
    rest = [("watch", f"{count(more, 'more warning')}: --explain")] if more else []
    return [*(("watch", text) for text in shown), *rest]


def _with_cure(issue: Issue) -> str:
    """A finding, with its cure where that is an option to set."""
    told = first_sentence(issue)
    return f"{told} {issue.cure}" if "--" in issue.cure else told


def _licences(audit: Audit) -> Iterator[Line]:
    """What licences ask of somebody who publishes what was made."""
    for issue in by_severity(audit.compatibility.issues):
        if issue.code.startswith(LICENCE):
            yield "licence", first_sentence(issue)


def _for_one(row: AdapterSummary, broken: set[str], audit: Audit) -> str:
    """The next command for a single adapter: what mends its files, else others of its base."""
    codes = {issue.code for issue in audit.compatibility.issues}
    if codes & MENDABLE and broken <= MENDABLE:
        return shlex.join(["loraprobe", "convert", row.reference, "-o", "DIR"])
    return shlex.join(["loraprobe", "find", row.base_model]) if row.base_model else ""


def _conflicts(audit: Audit) -> Iterator[Line]:
    errors = [i for i in audit.compatibility.issues if i.severity == "error"]
    for issue in errors[:2]:
        yield "why", f"{issue.code}: {first_sentence(issue)}"
        yield "fix", issue.cure
    if len(errors) > 2:
        yield "why", f"and {count(len(errors) - 2, 'more conflict')}"
