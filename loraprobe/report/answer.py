"""The answer of an audit: what a person reads who reads nothing else.

It is a headline and about ten lines, chosen by how much they change what a person does. Every
report shows the same: the terminal last, a page and a pull request first, Python as the audit's
repr. It is a pure function of the audit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from loraprobe.extension import audit_parts, commands_behind, finding_owner
from loraprobe.findings import CODES as FINDINGS
from loraprobe.formatting import clean, count, listing, number
from loraprobe.records import NOTHING, AdapterSummary, Audit, Command, LearnedWeights
from loraprobe.report.headline import headline, made, repeats
from loraprobe.report.limits import (
    MOST_REASONS,
    clause,
    licences,
    limits,
    of_extensions,
    problems,
    watched,
)
from loraprobe.report.measured import about_systems
from loraprobe.report.parts import AlwaysShown, Answer, Line
from loraprobe.verdict.next_command import OTHER, adapters_of, instead_of_probing, to_fill_in

WIDTH, MOST_ROWS = 80, 10  # of the sentences below the headline
OF_EXTENSIONS = ""  # stands for the labels of lines that extensions tell
# Labels, those first that change most what a person does.
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
# A second line of one label counts as much as one that stands so many places later: a second reason
# (`why`) comes after all that concerns this result and before other options (`or`). Half a place
# lets no two lines be equal. The number is a convention: from 3.5 to 12.5 no transcript changes.
AGAIN = 7.5
FILL_IN = "fill in"  # the label of what a command names that does not exist yet


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
    return Answer(verdict.decision if verdict else "", clean(headline(audit)), tuple(placed))


def unplaced(audit: Audit) -> str:
    """That a saved result has no places of local files; "" where there are none."""
    if all(row.commit is not None for row in audit.adapters):
        return ""
    return (
        "A saved result names files outside the folder of its run by their last part: put their "
        "places into commands."
    )


def chosen(lines: Sequence[Line]) -> list[Line]:
    """The sentences that change most, as many as there are rows for, and all commands.

    What is `AlwaysShown` stays, and with a command what it leaves to fill in. All are in the order
    of reading.
    """
    left, seen, ranked, shown = MOST_ROWS, Counter[str](), list[tuple[float, int]](), set[int]()
    for at, (label, content) in enumerate(lines):
        if isinstance(content, Command | AlwaysShown) or label == FILL_IN:
            shown.add(at)
            left -= _height(lines[at]) if isinstance(content, AlwaysShown) else 0
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
    if any(label in part.leading for part in audit_parts()):
        return BY_EFFECT.index("lacks")
    return BY_EFFECT.index(label if label in BY_EFFECT else OF_EXTENSIONS)


def _height(line: Line) -> int:
    """The rows of a line."""
    return len(list(Answer("", "", (line,)).rows(WIDTH)))


# ---- the lines -----------------------------------------------------------------------------------


def _lines(audit: Audit) -> Iterator[Line]:
    """All lines of the answer with their labels, also empty ones."""
    verdict = audit.verdict
    if made(audit) and audit.notes:
        yield "made", audit.notes[-1]
        yield "learned", _learned(audit.search)
    if verdict is None:
        yield from _about_files(audit)
        yield from commands_behind(audit)
        return
    if verdict.decision == "incompatible":
        yield from problems(audit.compatibility.errors)
    elif verdict.evidence in ("weights", "probes") or repeats(audit):
        yield "gain", clause(verdict, "measured-before")
        yield from of_extensions(audit)
        yield from limits(audit, verdict)
        yield "known", clause(verdict, "measured-elsewhere")
    else:
        yield from about_systems(audit, verdict)
    yield from licences(audit)
    yield "in Python" if verdict.next.in_python else "next", verdict.next
    questions = instead_of_probing(verdict.next) if verdict.evidence == "weights" else NOTHING
    yield "questions", questions
    yield FILL_IN, to_fill_in(questions or verdict.next)
    yield from commands_behind(audit)


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


# ---- files ---------------------------------------------------------------------------------------


def _about_files(audit: Audit) -> Iterator[Line]:
    """What was found in files alone: what stands in the way, and what to run next."""
    yield from of_extensions(audit)
    broken = [issue for issue in audit.compatibility.errors if not finding_owner(issue.code)]
    yield from problems(broken)
    yield from (("watch", text) for text in watched(audit)[:MOST_REASONS])
    yield from licences(audit)
    if audit.command == "inspect" and audit.adapters:
        command = _for_one(audit.adapters[0], {issue.code for issue in broken}, audit)
        yield "next", command
        yield FILL_IN, to_fill_in(command)


def _for_one(row: AdapterSummary, broken: set[str], audit: Audit) -> Command:
    """The next command for a single adapter: what mends its files, else others of its base."""
    codes = {issue.code for issue in audit.compatibility.issues}
    mending = [FINDINGS[c].mended_by if c in FINDINGS else "" for c in sorted(broken or codes)]
    if any(mending) and (all(mending) or not broken):
        return Command(next(filter(None, mending)), (row.reference,), (("-o", "DIR"),))
    base, public = audit.base, row.base_model or ""
    local = base is not None and base.commit is None and base.reference == public
    path = "base-is-a-path" in codes and "/" not in public
    hub_has_others = public and not local and not path
    if hub_has_others and (others := adapters_of(public)):
        return others
    return NOTHING if broken else Command("inspect", (row.reference, OTHER))
