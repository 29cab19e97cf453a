"""The answer of an audit: what a person reads who reads nothing else.

It is a headline and about ten lines, chosen by how much they change what a person does. Every
report shows the same: the terminal last, a page and a pull request first, Python as the audit's
repr. It is a pure function of the audit.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from loraprobe.compatibility import is_of_base
from loraprobe.defaults import MARGIN
from loraprobe.extension import audit_parts, commands_behind, installed, told_by
from loraprobe.findings import CODES as FINDINGS
from loraprobe.formatting import (
    clean,
    count,
    digits_beside,
    gained,
    listing,
    number,
    probability,
    spread,
)
from loraprobe.options import commands
from loraprobe.records import (
    BY_PROMPT,
    NOTHING,
    STEPS,
    AdapterSummary,
    Audit,
    Command,
    Issue,
    LearnedWeights,
    Reason,
    Rounds,
    Verdict,
    by_severity,
    called,
    example,
)
from loraprobe.report.headline import headline, tells_probability
from loraprobe.report.parts import Answer, Line
from loraprobe.verdict.advice import Basis, basis_of
from loraprobe.verdict.evidence import WEAKEST_FIRST
from loraprobe.verdict.next_command import (
    OTHER,
    may_stop,
    on_questions,
    to_fill_in,
)
from loraprobe.verdict.reasons import CODES, effect_rank, named_in, on_guard, without_form
from loraprobe.verdict.unanswered import SHOWN, closest, what_differs

WIDTH, MOST_ROWS = 80, 10  # of the sentences below the headline
OF_EXTENSIONS = ""  # stands for the labels of lines that extensions tell
# Labels, those first that change most what a person does. A second line of one label counts as much
# as one that stands AGAIN places later.
BY_EFFECT = (
    *(
        "use",
        "tried",
        *("question", "gold", "replied"),
        "output",
        "gain",
        "guard",
        "close",
        "better",
        "lacks",
        "why",
        "fix",
        "watch",
        "decide",
        "made",
        "learned",
        "stopped",
    ),
    OF_EXTENSIONS,
    *("or", "how sure", "forecast", "licence", "known", "also"),
    "controls",
)
AGAIN = 7.5
CERTAINTY = ("how sure", "forecast")  # labels of the probability, which is never left out
LONGEST = 100  # characters of a question or a reply
LACKS_BOTH = (
    "The items have no `hops` and no `cot_prompt`, so a chain and worked steps, which may answer, "
    "are not measured."
)
FILL_IN = "fill in"  # the label of what a command names that does not exist yet
MOST_REASONS = 3
LICENCE = "licence-"  # how codes of findings begin
# Codes of reasons about the form of the question that the decision is not about.
OTHER_FORM = ("step-by-step-form", "plain-form")
ROUNDING = 1e-9  # two scores differ by their difference up to this
ENOUGH = 100  # questions with which half a 95 % interval of a share is 0.10


def answer(audit: Audit, places: Mapping[str, Sequence[str]] = {}) -> Answer:
    """What an audit says to somebody who reads nothing else.

    places: a published name -> the references of the user that have it, for commands.
    """
    verdict = audit.verdict
    lines = [(label, content) for label, content in _lines(audit) if content]
    named = "" if verdict is None else _without_form(audit, verdict)
    placed = [
        (label, content.placed(places) if isinstance(content, Command) else clean(content))
        for label, content in chosen(lines, named)
    ]
    return Answer(verdict.decision if verdict else "", clean(_headline(audit)), tuple(placed))


def unplaced(audit: Audit) -> str:
    """That a saved result has no places of local files; "" where there are none."""
    if all(row.commit is not None for row in audit.adapters):
        return ""
    return (
        "A saved result names files outside the folder of its run by their last part: put their "
        "places into commands."
    )


def chosen(lines: Sequence[Line], kept: str = "") -> list[Line]:
    """The sentences that change most, as many as there are rows for, and all commands.

    How sure the verdict is always stays, and so does the sentence `kept`. With a command stays what
    it leaves to fill in. All are in the order in which they are read.
    """
    left, seen, ranked, shown = MOST_ROWS, Counter[str](), list[tuple[float, int]](), set[int]()
    for at, (label, content) in enumerate(lines):
        stays = label in CERTAINTY or content == kept
        if isinstance(content, Command) or label == FILL_IN or stays:
            shown.add(at)
            left -= _height(lines[at]) if stays else 0
        else:
            ranked.append((_place(label) + AGAIN * seen[label], at))
            seen[label] += 1
    for place, (_, at) in enumerate(sorted(ranked)):
        left -= _height(lines[at])
        if left < 0 and place:
            break
        shown.add(at)
    return [line for at, line in enumerate(lines) if at in shown]


def _place(label: str) -> int:
    """How little a line of this label changes."""
    counts = {own: other for one in installed() for own, other in one.counts.items()}
    return BY_EFFECT.index(label if label in BY_EFFECT else counts.get(label, OF_EXTENSIONS))


def _height(line: Line) -> int:
    """The rows of a line."""
    return len(list(Answer("", "", (line,)).rows(WIDTH)))


# ---- the headline --------------------------------------------------------------------------------


def _headline(audit: Audit) -> str:
    """The decision in words that a stranger understands."""
    verdict = audit.verdict
    if verdict is None:
        return next(filter(None, (one.headline(audit) for one in audit_parts())), _of_files(audit))
    if verdict.decision == "incompatible":
        return f"INCOMPATIBLE: {_conflict(audit)}."
    if verdict.evidence == "weights":
        what = "the merge" if audit.command == "merge" else "composing"
        return f"{_done(audit)}. Whether {what} helps needs a task."
    if _repeats(audit) and verdict.gain is not None:
        form = ", asked step by step" if verdict.gain.form == STEPS else ""
        return f"{_done(audit)}: measured to gain {verdict.gain.difference:.2f}{form}."
    if verdict.only_measured:
        head = verdict.action.kind
        who = {"use-base": "the base alone", "use-single": f"{verdict.action.adapter} alone"}
        best = f"{who.get(head, 'each task by its own adapter')} is the best of what was asked"
        best = "a chain gains what you asked for" if head == "chain" else best
        best = "nothing that was asked is shown to answer" if head == "gather-evidence" else best
        return f"MEASURED: {best}; merges and routers were not asked."
    return headline(audit, verdict)


def _repeats(audit: Audit) -> bool:
    """Whether the verdict was measured before, on the same composition."""
    return audit.verdict is not None and said(audit.verdict, "measured-before") != ""


def _conflict(audit: Audit) -> str:
    """What cannot be composed: adapters of another base, some of the adapters, or all."""
    errors = audit.compatibility.errors
    if audit.base is not None and any(map(is_of_base, errors)):
        names = list(dict.fromkeys(row.base_model for row in audit.adapters if row.base_model))
        theirs = f" ({listing(names)})" if names else ""
        return f"{audit.base.reference} is not the base of these adapters{theirs}"
    wrong = list(dict.fromkeys(name for issue in errors for name in issue.adapters))
    if errors and all(len(issue.adapters) == 1 for issue in errors):
        return f"{listing(wrong)} cannot be used as {'it is' if len(wrong) == 1 else 'they are'}"
    return "these adapters cannot be composed as they are"


def _of_files(audit: Audit) -> str:
    """What files alone tell: what one adapter is, or what was made."""
    errors = audit.compatibility.errors
    if len(audit.adapters) != 1 or audit.command != "inspect":
        return "INCOMPATIBLE." if errors else f"{_done(audit)}."
    row = audit.adapters[0]
    state = " It cannot be used as it is." if errors else ""
    if errors and all(tellers := [told_by(issue.code) for issue in errors]):
        state = " ".join(["", *dict.fromkeys(one.unfit for one in tellers if one is not None)])
    kind = f"{row.variant}, rank {spread(row.rank.values())}, {count(row.modules, 'module')}"
    base = row.base_model or "an unnamed base"
    return f"{row.name}: {kind} of {base}{_warnings(audit)}.{state}"


def _done(audit: Audit) -> str:
    """What the command did, and the number of warnings."""
    return f"{_made(audit) or 'FIT TOGETHER'}{_warnings(audit)}"


def _made(audit: Audit) -> str:
    """The headline of a command that makes something; "" for any other."""
    return commands()[audit.command].done if audit.command in commands() else ""


def _warnings(audit: Audit) -> str:
    found = len(_watched(audit))
    rest = " (--explain tells all)" if found > MOST_REASONS else ""
    return f", {count(found, 'warning')}{rest}" if found else ""


# ---- the lines -----------------------------------------------------------------------------------


def _lines(audit: Audit) -> Iterator[Line]:
    """All lines of the answer with their labels, also empty ones."""
    verdict = audit.verdict
    if _made(audit) and audit.notes:
        yield "made", audit.notes[-1]
        yield "learned", _learned(audit.search)
    if verdict is None:
        yield from _about_files(audit)
        yield from commands_behind(audit)
        return
    if verdict.decision == "incompatible":
        yield from problems(audit.compatibility.errors)
    elif verdict.evidence in ("weights", "probes") or _repeats(audit):
        yield "gain", said(verdict, "measured-before").replace("M", "m", 1).rstrip(".")
        yield from _of_extensions(audit)
        yield from _limits(audit, verdict)
        yield "known", _known(verdict)
    else:
        yield from _about_systems(audit, verdict)
    yield from _licences(audit)
    yield "in Python" if verdict.next.in_python else "next", verdict.next
    questions = on_questions(verdict.next) if verdict.evidence == "weights" else NOTHING
    yield "questions", questions
    yield FILL_IN, to_fill_in(questions or verdict.next)
    yield from commands_behind(audit)


def after_round(rounds: Rounds) -> str:
    """When a run stopped."""
    return f"after round {rounds.used} of {rounds.planned}"


def _learned(found: LearnedWeights | None) -> str:
    """Learned weights, and what they gain on the items from which they were learned."""
    if found is None:
        return ""
    weights = listing(f"{name} {number(weight, 3)}" for name, weight in found.weights.items())
    means = f" (means of {count(len(found.layers), 'layer')})" if found.layers else ""
    return (
        f"weights {weights}{means}: {found.loss:.3f} nats a token of the answers to the "
        f"{count(found.items, 'question')} learned from, {found.uniform_loss:.3f} for equal weights"
    )


def problems(issues: Sequence[Issue]) -> Iterator[Line]:
    """What stands in the way, and each cure once."""
    yield from (("why", f"{one.code}: {first_sentence(one)}") for one in issues[:MOST_REASONS])
    for cure in dict.fromkeys(issue.cure for issue in issues[:MOST_REASONS]):
        yield "fix", Command.read(cure) if cure.startswith("loraprobe ") else cure


def _about_systems(audit: Audit, verdict: Verdict) -> Iterator[Line]:
    """What was measured of systems: what to use, what it gains, and how sure that is."""
    measured = basis_of(verdict, audit.evaluation)
    if verdict.missing == "answers":
        yield from _replied(audit)
    else:
        yield "use", _use(audit, verdict, measured)
    yield "output", said(verdict, "nothing-written").replace("Nothing", "nothing", 1).rstrip(".")
    yield "tried", said(verdict, "tried").rstrip(".")
    yield "gain", _gain(audit, verdict)
    yield "guard", _guard(audit, verdict)
    rounds = audit.evaluation.rounds
    decided = audit.command != "inspect" and verdict.missing != "time"
    if rounds is not None and rounds.early and decided:
        yield "stopped", f"{after_round(rounds)}; --all-items asks the rest"
    yield from _of_extensions(audit)
    yield "close", _without_form(audit, verdict)
    yield "close", said(verdict, "right-together").rstrip(".")
    yield "or", said(verdict, "on-any-server").replace("On", "on", 1).rstrip(".")
    codes = ("not-told-apart", "equals", "on-any-server", "as-good")
    close = next((code for code in codes if said(verdict, code)), "")
    yield "close", "" if close == "on-any-server" else said(verdict, close).rstrip(".")
    yield "better", _better(audit, verdict, measured)
    yield "decide", _decide(audit, verdict, measured)
    yield from _limits(audit, verdict)
    if verdict.decision == "likely":  # what shows that the partner matters
        yield "controls", said(verdict, "controls-beaten")
    # After every question was asked it is no forecast.
    yield "how sure" if verdict.evidence == "evaluation" else "forecast", _certainty(audit, verdict)
    yield "known", _known(verdict)


# ---- reasons and findings ------------------------------------------------------------------------


def _limits(audit: Audit, verdict: Verdict) -> Iterator[Line]:
    """At most three reasons: why, what to watch, and what the adapters' findings warn of."""
    why = [r for r in _told("why", verdict.reasons) if _explains(r, verdict)]
    why.sort(key=lambda r: r.severity != "decisive")
    explained = [("why", r.message) for r in why[:2]]
    if "replies-differ" in {r.code for r in verdict.reasons} and audit.samples:
        names = [one.system for one in closest(audit.evaluation)[:SHOWN]]
        explained = [("why", what_differs(audit.samples[0], names))]  # the headline says the rest
    lacks = [r.message for r in _told("lacks", verdict.reasons)]
    lacking = [("lacks", text) for text in ([LACKS_BOTH] if len(lacks) > 1 else lacks)]
    # What may change the advice comes before what explains it; where nothing answers there is none.
    first = [*explained, *lacking] if verdict.missing == "answers" else [*lacking, *explained]
    yield from [*first, *(("watch", text) for text in _watched(audit))][:MOST_REASONS]
    if verdict.evidence == "weights":
        yield from (("also", r.message) for r in verdict.reasons if r.code == "unrelated-updates")


def _told(line: str, reasons: Sequence[Reason]) -> list[Reason]:
    """The reasons that this line of the answer tells, those of the largest effect first."""
    found = [r for r in reasons if r.code in CODES and CODES[r.code].line == line]
    return sorted(found, key=lambda reason: effect_rank(reason.code))


def _explains(reason: Reason, verdict: Verdict) -> bool:
    """Whether a reason explains the decision: of an open one, only what keeps it open does."""
    best, open_ = verdict.gain, verdict.decision == "inconclusive"
    if verdict.missing == "answers":
        return reason.code != "replies-differ"  # the question that is shown says more
    if reason.code in OTHER_FORM:
        return open_ and best is not None and (reason.value or 0.0) > best.difference
    if verdict.evidence not in ("pilot", "evaluation") or not open_:
        return True
    return reason.severity == "decisive" or reason.code.startswith(
        ("retention", "compression", "better-is-unsafe")
    )


def _watched(audit: Audit) -> list[str]:
    """What to watch: reasons of the verdict, then warnings among the findings, without those that
    a reason tells too, and without licences."""
    reasons = audit.verdict.reasons if audit.verdict is not None else ()
    codes = {reason.code for reason in reasons}
    twice = {"duplicate"} if codes & {"nearly-equal-updates", "same-adapter"} else set()
    twice |= {"said-otherwise"} if "right-without-form" in codes else set()
    warnings = [r.message for r in _told("watch", reasons) if r.code not in twice]
    for issue in audit.compatibility.issues:
        elsewhere = issue.code in twice or issue.code.startswith(LICENCE) or told_by(issue.code)
        if issue.severity == "warning" and not elsewhere:
            cure = f" {issue.cure}" if "--" in issue.cure else ""  # an option to set
            warnings.append(f"{first_sentence(issue)}{cure}")
    return warnings


def first_sentence(issue: Issue) -> str:
    """What a finding says, without what follows from it."""
    return re.split(r"(?<=\.)\s|;\s(?=an\s)", issue.message, maxsplit=1)[0]


def _licences(audit: Audit) -> Iterator[Line]:
    """What licences ask of somebody who publishes what was made."""
    for issue in by_severity(audit.compatibility.issues):
        if issue.code.startswith(LICENCE):
            yield "licence", first_sentence(issue)


# ---- files -------------------------------------------------------------------------


def _about_files(audit: Audit) -> Iterator[Line]:
    """What was found in files alone: what stands in the way, and what to run next."""
    yield from _of_extensions(audit)
    broken = [issue for issue in audit.compatibility.errors if not told_by(issue.code)]
    yield from problems(broken)
    yield from (("watch", text) for text in _watched(audit)[:MOST_REASONS])
    yield from _licences(audit)
    if audit.command == "inspect" and audit.adapters:
        command = _for_one(audit.adapters[0], {issue.code for issue in broken}, audit)
        yield "next", command
        yield FILL_IN, to_fill_in(command)


def _of_extensions(audit: Audit) -> Iterator[Line]:
    """What extensions tell of their findings and of what is advised."""
    for one in installed():
        yield from one.lines(audit)


def _for_one(row: AdapterSummary, broken: set[str], audit: Audit) -> Command:
    """The next command for a single adapter: what mends its files, else others of its base."""
    codes = {issue.code for issue in audit.compatibility.issues}
    mending = [FINDINGS[c].mended_by if c in FINDINGS else "" for c in sorted(broken or codes)]
    if any(mending) and (all(mending) or not broken):
        return Command(next(filter(None, mending)), (row.reference,), (("-o", "DIR"),))
    base, public = audit.base, row.base_model or ""
    local = base is not None and base.commit is None and base.reference == public
    path = "base-is-a-path" in codes and "/" not in public
    if not public or local or path:  # the Hub has no others of it
        return NOTHING if broken else Command("inspect", (row.reference, OTHER))
    return Command("find", (public,))


# ---- systems -------------------------------------------------------------------------------------


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


def _without_form(audit: Audit, verdict: Verdict) -> str:
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
    open_ = verdict.decision == "inconclusive" and not verdict.only_measured
    so_far = "so far " if open_ else ""
    score = f": {used.shown:z.2f}" if used is not None else ""
    if used is not None and verdict.composes:
        by_prompt = used.system.startswith(BY_PROMPT)
        kind = "router that chooses an adapter for each prompt" if by_prompt else used.kind
        decides = best is not None and (best.system, best.form) == (used.system, used.part)
        form = f",{used.in_form}" if used.in_form else ""
        return f"{so_far}{called(used.system)} (a {kind}){form}{'' if decides else score}"
    other = measured.best if head == "chain" else measured.composed
    if score and best is not None and other is not None and best.system != "chain":
        score += f" against {other.shown:z.2f} for {called(other.system)}"
        score += other.in_form if head == "chain" and other.part == STEPS else ""
    form = used.in_form if used is not None else ""
    loses = said(verdict, "better-is-unsafe") != ""
    who = {
        "chain": f"{so_far}a chain, {_hops(audit) or 'each hop by whoever answers it best'}",
        "use-single": f"{so_far}{verdict.action.adapter} alone{form}",
        "use-base": f"{so_far}the base alone",
        "switch-adapters": f"{so_far}{_each_task(verdict)}, one at a time",
        "gather-evidence": "nothing yet: "
        + (
            "what answers loses a guard, and what keeps every guard is not shown to answer"
            if loses
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
        gain = f"{own} for {called(best.system)}"
        return f"{gain} against {best.against}, in a first round on {of_all}; {asked}"
    if rounds is not None and best.n == rounds.items < rounds.total:
        of_all = f"{best.n} of {count(rounds.total, 'question')}"
    alone = "the base" if best.against == "base" else f"{best.against}, the best alone"
    two_forms = baseline.part != best.form
    alone += f", {baseline.form}" if two_forms else ""
    composed_as = called(best.system) + (f", {composed.form}," if two_forms else "")
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


def said(verdict: Verdict, code: str) -> str:
    """The sentence of the reason of this code; "" without the reason."""
    return next((r.message for r in verdict.reasons if r.code == code), "")


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
    if any(reason.code == "few-items" for reason in verdict.reasons):
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


def _known(verdict: Verdict) -> str:
    """What measured adapter sets of the same kind gained, beside an open verdict."""
    sentence = said(verdict, "measured-elsewhere")
    return sentence[:1].lower() + sentence[1:-1]
