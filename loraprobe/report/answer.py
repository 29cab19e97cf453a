"""The answer of an audit: what a person reads who reads nothing else.

It is a headline and about ten lines, chosen by how much they change what a person does. Every
report shows the same: the terminal last, a page and a pull request first, Python as the audit's
repr. It is a pure function of the audit.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from loraprobe import compatibility
from loraprobe.adapters import MENDABLE
from loraprobe.defaults import MARGIN
from loraprobe.formatting import clean, count, first_names, listing, number, spread
from loraprobe.records import (
    FORMS,
    NOTHING,
    AdapterSummary,
    Audit,
    Command,
    Gain,
    Issue,
    Library,
    LibraryAdapter,
    Reason,
    Verdict,
    example,
)
from loraprobe.report.parts import Answer, Line
from loraprobe.verdict import Evidence
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.evidence import gain_criterion
from loraprobe.verdict.next_command import TASK, library_words, on_questions, to_fill_in
from loraprobe.verdict.reasons import CODES, effect

WIDTH, MOST_ROWS = 80, 10  # of the sentences below the headline
# Labels, those first that change most what a person does. A second line of one label counts as much
# as one that stands AGAIN places later.
BY_EFFECT = (
    *("use", "gain", "chosen", "why", "fix", "watch", "decide", "made", "stopped", "better"),
    *("close", "how sure", "forecast", "licence", "lacks", "known", "also", "sure"),
    *("reads it", "broken", "unfit", "copies", "families", "outliers"),
)
AGAIN = 7.5
FILL_IN = "fill in"  # the label of what a command names that does not exist yet
MOST_REASONS = 3
MOST_NAMES = 3
SERVING, LICENCE = "serve-", "licence-"  # how codes of findings begin
SEVERITIES = ("error", "warning", "note")
# Codes of reasons about the form of the question that the decision is not about.
OTHER_FORM = ("step-by-step-form", "plain-form")
SKILLS = "one model that keeps all skills"
PER_PROMPT = "per=sequence"  # the option of routers that choose one adapter a prompt
ROUNDING = 1e-9  # two scores differ by their difference up to this
ENOUGH = 100  # questions with which half a 95 % interval of a share is 0.10


def answer(audit: Audit, places: Mapping[str, Sequence[str]] = {}) -> Answer:
    """What an audit says to somebody who reads nothing else.

    places: a published name -> the references of the user that have it, for commands.
    """
    verdict = audit.verdict
    lines = [(label, content) for label, content in _lines(audit) if content]
    placed = [
        (label, content.placed(places) if isinstance(content, Command) else clean(content))
        for label, content in chosen(lines)
    ]
    return Answer(verdict.decision if verdict else "", clean(_headline(audit)), tuple(placed))


def unplaced(audit: Audit) -> str:
    """That a saved result has no places of local files; "" where its next command needs none."""
    command = audit.verdict.next if audit.verdict is not None else NOTHING
    local = {row.reference for row in audit.adapters if row.commit is None}
    if not any(one.rpartition("=")[2] in local for one in command.adapters):
        return ""
    return "A saved result names local files by their last part: put their places into the command."


def chosen(lines: Sequence[Line]) -> list[Line]:
    """The sentences that change most, as many as there are rows for, and all commands.

    With a command stays what it leaves to fill in. All are in the order in which they are read.
    """
    left, seen, ranked, kept = MOST_ROWS, Counter[str](), list[tuple[float, int]](), set[int]()
    for at, (label, content) in enumerate(lines):
        if isinstance(content, Command) or label == FILL_IN:
            kept.add(at)
        else:
            ranked.append((BY_EFFECT.index(label) + AGAIN * seen[label], at))
            seen[label] += 1
    for place, (_, at) in enumerate(sorted(ranked)):
        left -= len(list(Answer("", "", (lines[at],)).rows(WIDTH)))
        if left < 0 and place:
            break
        kept.add(at)
    return [line for at, line in enumerate(lines) if at in kept]


def _headline(audit: Audit) -> str:
    """The decision in words that a stranger understands."""
    verdict = audit.verdict
    if verdict is None and audit.library is not None:
        usable, total = _usable(audit.library), count(len(audit.library.adapters), "adapter")
        if usable == len(audit.library.adapters):
            return f"LIBRARY: all of {total} can be used." if usable > 1 else f"LIBRARY: {total}."
        return f"LIBRARY: {usable} of {total} can be used."
    if verdict is None:
        return _without_verdict(audit)
    if verdict.decision == "incompatible":
        return "INCOMPATIBLE: these adapters cannot be composed as they are."
    if verdict.evidence == "weights":
        what = "the merge" if audit.command == "merge" else "composing"
        return f"{_done(audit)}. Whether {what} helps needs a task."
    several = len({row.task for row in audit.evaluation.scores}) > 1
    if verdict.answers_without_composing:
        head, _, single = verdict.action.partition(":")
        who = {"use-base": "the base alone", "use-single": f"{single} alone"}
        best = f"{who.get(head, 'each task by its own adapter')} is the best of what was asked"
        best = "a chain gains what you asked for" if head == "chain" else best
        return f"MEASURED: {best}; merges and routers were not asked."
    return f"{verdict.decision.upper()}: {_meaning(verdict, several)}."


def _meaning(verdict: Verdict, several: bool) -> str:
    gain, evidence = verdict.gain, verdict.evidence
    if verdict.decision == "likely":
        if several:
            return f"composing gives {SKILLS}"
        steps = gain is not None and gain.form == "steps"
        return "composing works" + (", asked step by step" if steps else "")
    if verdict.decision == "unlikely":
        if several:
            return f"composing does not give {SKILLS}"
        does = "does not" if evidence == "evaluation" else "will not"
        return f"composing these adapters {does} gain what you asked for"
    asked = "" if gain is None else count(gain.n, "question")
    if evidence == "pilot" and asked:
        return f"a first round on {asked} does not decide whether composing works"
    if evidence == "evaluation":
        return f"{asked or 'these scores'} do not decide whether composing works"
    if gain is not None and gain.system == "chain":
        return f"{asked} do not decide whether a chain gains; merges and routers were not asked"
    known = "probes tell what the base knows"
    known = known if evidence == "probes" else "base and single adapters leave it open"
    return f"{known}; no composition was measured"


def _without_verdict(audit: Audit) -> str:
    fits = audit.compatibility.compatible
    if len(audit.adapters) == 1 and audit.command == "inspect":
        row = audit.adapters[0]
        rank, modules = spread(row.rank.values()), count(row.modules, "module")
        kind = f"{row.name}: {row.variant}, rank {rank}, {modules}"
        state = "" if fits else " It cannot be used as it is."
        errors = _errors(audit)
        if errors and all(issue.code.startswith(SERVING) for issue in errors):
            state = " Not every server named reads it as it is."
        return f"{kind} of {row.base_model or 'an unnamed base'}{_warnings(audit)}.{state}"
    return f"{_done(audit)}." if fits else "INCOMPATIBLE."


def _done(audit: Audit) -> str:
    """What the command did, and the number of warnings."""
    done = {"merge": "MERGED", "route": "COMPOSED", "convert": "CONVERTED"}
    return f"{done.get(audit.command, 'FIT TOGETHER')}{_warnings(audit)}"


def _warnings(audit: Audit) -> str:
    found = len(_watched(audit))
    return f", {count(found, 'warning')}" if found else ""


def _lines(audit: Audit) -> Iterator[Line]:
    """All lines of the answer with their labels, also empty ones."""
    verdict = audit.verdict
    if audit.command in ("merge", "route", "convert") and audit.notes:
        yield "made", audit.notes[-1]
    if verdict is None and audit.library is not None:
        yield from _of_library(audit)
    elif verdict is None:
        yield from _of_files(audit)
    else:
        yield from _of_verdict(audit, verdict)
        yield from _licences(audit)
        yield "in Python" if verdict.next.in_python else "next", verdict.next
        questions = on_questions(verdict.next) if verdict.evidence == "weights" else NOTHING
        yield "questions", questions
        yield FILL_IN, to_fill_in(questions or verdict.next)


def _of_verdict(audit: Audit, verdict: Verdict) -> Iterator[Line]:
    """The lines that lead to the next command."""
    if verdict.decision == "incompatible":
        errors = _errors(audit)
        for issue in errors[:2]:
            yield "why", f"{issue.code}: {first_sentence(issue)}"
            yield "fix", issue.cure
        if len(errors) > 2:
            yield "why", f"and {count(len(errors) - 2, 'more conflict')}: --explain"
    elif verdict.evidence in ("weights", "probes"):
        yield from _limits(audit, verdict)
        yield "known", _known(verdict)
    else:
        yield "use", _use(audit, verdict)
        yield "gain", gain_line(audit, verdict)
        yield "stopped", _stopped(audit)
        yield "chosen", _said(verdict, "chosen-from-library").removeprefix("Chosen ").rstrip(".")
        yield "close", _said(verdict, "not-told-apart").rstrip(".")
        yield "better", _better(audit, verdict)
        yield "decide", _decide(audit, verdict)
        yield from _limits(audit, verdict)
        if verdict.decision == "likely":  # what shows that the partner matters
            yield "sure", _said(verdict, "controls-beaten")
        # After every question was asked it is no forecast.
        yield "how sure" if verdict.evidence == "evaluation" else "forecast", _forecast(verdict)
        yield "known", _known(verdict)


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
    best, open_ = verdict.gain, verdict.decision == "inconclusive"
    if reason.code in OTHER_FORM:
        return open_ and best is not None and (reason.value or 0.0) > best.difference
    if verdict.evidence not in ("pilot", "evaluation") or not open_:
        return True
    return reason.severity == "decisive" or reason.code.startswith(("retention", "compression"))


def _watched(audit: Audit) -> list[str]:
    """What to watch: reasons of the verdict, then warnings among the findings, without those that
    a reason tells too, and without licences."""
    reasons = audit.verdict.reasons if audit.verdict is not None else ()
    codes = {reason.code for reason in reasons}
    twice = {"duplicate"} if codes & {"nearly-equal-updates", "same-adapter"} else set()
    found = [r.message for r in _told("watch", reasons)]
    for issue in audit.compatibility.issues:
        elsewhere = issue.code in twice or issue.code.startswith((LICENCE, SERVING))
        if issue.severity == "warning" and not elsewhere:
            cure = f" {issue.cure}" if "--" in issue.cure else ""  # an option to set
            found.append(f"{first_sentence(issue)}{cure}")
    return found


def _watch(texts: Sequence[str], most: int) -> list[tuple[str, str]]:
    """Warnings as lines: all of them, or the first and how many more the headline counts."""
    shown = texts if len(texts) <= most else texts[: max(1, most - 1)]
    more = len(texts) - len(shown)
    rest = [("watch", f"{count(more, 'more warning')}: --explain")] if more else []
    return [*(("watch", text) for text in shown), *rest]


def by_severity(issues: Iterable[Issue]) -> list[Issue]:
    """Findings, errors first."""
    return sorted(issues, key=lambda issue: SEVERITIES.index(issue.severity))


def first_sentence(issue: Issue) -> str:
    """What a finding says, without what follows from it."""
    return re.split(r"(?<=\.)\s|;\s(?=an\s)", issue.message, maxsplit=1)[0]


def _errors(audit: Audit) -> list[Issue]:
    return [issue for issue in audit.compatibility.issues if issue.severity == "error"]


def _licences(audit: Audit) -> Iterator[Line]:
    """What licences ask of somebody who publishes what was made."""
    for issue in by_severity(audit.compatibility.issues):
        if issue.code.startswith(LICENCE):
            yield "licence", first_sentence(issue)


def _of_files(audit: Audit) -> Iterator[Line]:
    """What was found in files alone: what stands in the way, what servers do, what to run next."""
    yield from _serving(audit)
    broken = [issue for issue in _errors(audit) if not issue.code.startswith(SERVING)]
    for issue in broken[:MOST_REASONS]:
        yield "why", first_sentence(issue)
        yield "fix", "" if issue.code in MENDABLE else issue.cure
    yield from _watch(_watched(audit), MOST_REASONS)
    yield from _licences(audit)
    if audit.command == "inspect" and audit.adapters:
        yield "next", _for_one(audit.adapters[0], {issue.code for issue in broken}, audit)


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
            yield "serve", Command("shell", text=issue.cure)


def _for_one(row: AdapterSummary, broken: set[str], audit: Audit) -> Command:
    """The next command for a single adapter: what mends its files, else others of its base."""
    codes = {issue.code for issue in audit.compatibility.issues}
    if codes & MENDABLE and broken <= MENDABLE:
        return Command("convert", (row.reference,), (("-o", "DIR"),))
    return Command("find", (row.base_model,)) if row.base_model else NOTHING


def _of_library(audit: Audit) -> Iterator[Line]:
    """What of a library can be used, and how its adapters relate."""
    rows = audit.library.adapters if audit.library is not None else ()
    for state in ("broken", "unfit"):
        yield state, _by_reason([row for row in rows if row.state == state])
    equal = [f"{row.name} = {row.same_as}" for row in rows if row.state == "duplicate"]
    others = [row for row in rows if row.same_as is not None and row.state != "duplicate"]
    scaled = [f"{row.name} of {row.same_as}" for row in others]
    told = [f"{len(equal)} left out ({first_names(equal, MOST_NAMES)})"] if equal else []
    told += [f"{len(scaled)} only scaled ({first_names(scaled, MOST_NAMES)})"] if scaled else []
    yield "copies", "; ".join(told)
    yield "families", _families([row for row in rows if row.place is not None])
    far = [f"{row.name} ({number(row.norm)})" for row in rows if row.outlier]
    yield (
        "outliers",
        f"{len(far)} of extreme norm: {first_names(far, MOST_NAMES)}" if far else "",
    )
    references = library_words(rows, audit.provenance.arguments)
    command = Command("screen", tuple(references), (("--task", TASK),))
    yield "next", command
    yield FILL_IN, to_fill_in(command)


def _usable(library: Library) -> int:
    return sum(row.state == "usable" for row in library.adapters)


def _by_reason(rows: Sequence[LibraryAdapter]) -> str:
    """Adapters by the meaning of the first finding that excludes them."""
    found: dict[str, list[str]] = {}
    for row in rows:
        code = next((i.code for i in row.issues if i.severity == "error"), "")
        found.setdefault(compatibility.CODES.get(code, code), []).append(row.name)
    told = [f"{first_names(names, MOST_NAMES)} ({why})" for why, names in found.items()]
    return f"{len(rows)}: {'; '.join(told)}" if told else ""


def _families(rows: Sequence[LibraryAdapter]) -> str:
    """Groups that point the same way, of those that have a place on the map."""
    sizes = Counter(row.family for row in rows if row.family is not None).values()
    if len(rows) < 2:
        return ""
    if not sizes:
        return f"none: all {len(rows)} point in different directions"
    least, most, alone = min(sizes), max(sizes), len(rows) - sum(sizes)
    each = f"{least}" if least == most else f"{least} to {most}"
    groups = f"{len(sizes)} of {each} adapters that point the same way"
    return f"{groups}; {alone} stand alone" if alone else groups


def _use(audit: Audit, verdict: Verdict) -> str:
    """What to use, with its score and that of the composition where both were measured."""
    head, _, single = verdict.action.partition(":")
    best = verdict.gain
    composed = ""
    if best is not None and best.system != "chain":
        own = _shown(_mean(audit, best.system, best.form))
        composed = f" against {own} for {best.system}"
    scored = _shown(_advised_score(audit, verdict))
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
        told = best is not None and (best.system, best.form) == (verdict.system, _form(verdict))
        return f"{so_far}{verdict.system} (a {kind}){form}" + ("" if told else f": {scored}")
    if head == "chain":
        measured = f": {scored}{composed}" if scored != "-" else ""
        return f"a chain, {_hops(audit) or 'each hop by whoever answers it best'}{measured}"
    if head == "use-single":
        form = fmt.PART[_better_form(audit, single)]
        return f"{so_far}{single} alone, {form}: {scored}{composed}"
    if head == "use-base":
        return f"{so_far}the base alone: {scored}{composed}"
    own_scores = _own_scores(audit, verdict) if head == "switch-adapters" else ""
    return {
        "gather-evidence": "nothing yet: nothing that was measured is shown to answer",
        "switch-adapters": f"{so_far}each task's own adapter, one at a time{own_scores}",
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


def _advised_score(audit: Audit, verdict: Verdict) -> float | None:
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


def gain_line(audit: Audit, verdict: Verdict) -> str:
    """The decisive gain with its interval, against whom, and on how many questions."""
    best = verdict.gain
    if best is None:
        return ""
    if verdict.evidence == "pilot":  # the base and single adapters answered more items
        return (
            f"{fmt.gain(best.difference, *best.ci95)} for {best.system} against {best.against}, in "
            f"a first round on {count(best.n, 'question')}; you asked for "
            f"{fmt.number(verdict.margin)}"
        )
    row = _gain_of(audit, verdict)
    form = row.against_part if row is not None else best.form
    alone = "the base" if best.against == "base" else f"{best.against}, the best alone"
    asked = f", {fmt.PART[form]}" if form != best.form else ""
    mean = "mean " if len({s.task for s in audit.evaluation.scores}) > 1 else ""
    own, other = _mean(audit, best.system, best.form), _mean(audit, best.against, form)
    difference, digits = _agreeing(own, other, best.difference)
    rounds, of_all = audit.evaluation.rounds, count(best.n, "question")
    if rounds is not None and best.n == rounds.items < rounds.total:
        of_all = f"{best.n} of {count(rounds.total, 'question')}"
    return (
        f"{mean}{_shown(own, digits)} for {best.system} against {_shown(other, digits)} for "
        f"{alone}{asked}: {fmt.gain(difference, *best.ci95, digits)} on {of_all}; you asked for "
        f"{fmt.number(verdict.margin)}"
    )


def _gain_of(audit: Audit, verdict: Verdict) -> Gain | None:
    """The gain that the verdict is about, as it was measured."""
    best = verdict.gain
    wanted = best and (best.system, best.form, best.n)
    return next((g for g in audit.evaluation.gains if (g.system, g.part, g.n) == wanted), None)


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


def _stopped(audit: Audit) -> str:
    """How far a run went that stopped before all items were asked, and how to ask the rest."""
    rounds = audit.evaluation.rounds
    if rounds is None or not rounds.early or audit.command == "inspect":
        return ""
    return f"after round {rounds.used} of {rounds.planned}; --all-items asks the rest"


def _said(verdict: Verdict, code: str) -> str:
    """The message of the reason of this code; "" without it."""
    return next((reason.message for reason in verdict.reasons if reason.code == code), "")


def _better(audit: Audit, verdict: Verdict) -> str:
    """A chain that scores more than what is advised, which takes one call."""
    chain, advised = _mean(audit, "chain", "question"), _advised_score(audit, verdict)
    if chain is None or advised is None or chain - advised <= min(verdict.margin, MARGIN):
        return ""
    hops = f" ({_hops(audit)})" if audit.evaluation.chain else ""
    return f"a chain{hops} scores {number(chain)}, if you can ask hop after hop"


def _decide(audit: Audit, verdict: Verdict) -> str:
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
    asks_them = verdict.next.verb == "merge-and-eval" and not to_fill_in(verdict.next)
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
    row = _gain_of(audit, verdict)
    if row is None:
        return None
    low, high = row.adjusted_ci95
    return row if low <= verdict.margin <= high else None


def _forecast(verdict: Verdict) -> str:
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


def _known(verdict: Verdict) -> str:
    """What measured adapter sets of the same kind gained, beside an open verdict."""
    told = _said(verdict, "measured-elsewhere")
    return told[:1].lower() + told[1:-1]


def _better_form(audit: Audit, system: str) -> str:
    """The form of the question in which a system scores more."""
    plain, steps = (_mean(audit, system, form) for form in FORMS)
    return "steps" if steps is not None and (plain is None or steps > plain) else "question"


def _mean(audit: Audit, system: str, part: str) -> float | None:
    return Evidence(audit.evaluation).mean(system, part)
