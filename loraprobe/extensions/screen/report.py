"""What reports show of a library, and of what a screen proved of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from statistics import mean

from loraprobe.extensions.screen.records import LibraryAdapter, Screened, Shortlisted, screened
from loraprobe.formatting import bounds, count, first_names, number, rounded, signed, spread
from loraprobe.records import STEPS, Audit, Command, Issue, display_name
from loraprobe.report.answer import FILL_IN
from loraprobe.report.limits import first_sentence, said
from loraprobe.report.measured import after_round
from loraprobe.report.parts import (
    MARKDOWN,
    PAGE,
    SHORT,
    Column,
    Figure,
    Line,
    Section,
    Table,
    tabulated,
    text,
)
from loraprobe.report.sections import ALL, EVERYWHERE, FULL, meaning, section
from loraprobe.verdict.next_command import TASK, to_fill_in

OUTCOMES = {"compose": "compose", "single": "use alone", "chain": "ask hop after hop"}
OUTCOMES |= {"none": "no gain", "open": "open"}
MOST_USABLE = 20  # without --explain
MOST_NAMES, MOST_TOLD = 8, 3  # in a cell, and in a line of the answer
NUMBERED = 12  # families of a map that are numbered
CONVERTED = re.compile(r"(?<=loraprobe convert )\S.*?(?= -)")  # the adapter that a cure names
SKETCHED = (
    "How alike two adapters are is estimated from sketches of their updates, with a standard error "
    "of the cosine of at most {:.3f}; copies are confirmed from the updates themselves."
)
SHORTLISTED = (
    "Sets of adapters that were composed and proved on questions that took no part in the choice. "
    "The place is that by the forecast, which adds the adapters' effects on the next token or, for "
    "worked steps, counts what the members know alone; gains are over the base and every single "
    "adapter that was proved beside them."
)


def short_list_section(audit: Audit) -> Section:
    """What was proved."""
    told = screened(audit).shortlist
    return section(
        "short-list",
        "Short list",
        (PAGE, [SHORTLISTED] if told else []),
        ((*ALL, *MARKDOWN), [shortlist(audit)]),
    )


def library_section(audit: Audit) -> Section:
    """What the library is."""
    found = screened(audit)
    asked = audit.evaluation.coverage or audit.evaluation.scores
    error = None if found.library is None else found.library.cosine_error
    return section(
        "library",
        "The library",
        (PAGE, [SKETCHED.format(error)] if error is not None else []),
        (PAGE, library_map(found)),
        (() if asked else SHORT, [usable(found)]),
        ((*ALL, *MARKDOWN), [unusable(found)]),
        (EVERYWHERE, [families(found)]),
        (FULL, [tabulated_adapters("The library", found.members), library_findings(found)]),
    )


# ---- the answer ----------------------------------------------------------------------------------


def about_choice(audit: Audit) -> Iterator[Line]:
    """Out of what the verdict's composition was chosen, and what ended the run."""
    rounds, verdict = audit.evaluation.rounds, audit.verdict
    assert verdict is not None
    if rounds is not None and rounds.early and verdict.missing == "time":
        yield "stopped", f"{after_round(rounds)}, by --budget"
    yield "chosen", said(verdict, "chosen-from-library").removeprefix("Chosen ").rstrip(".")


def about_library(audit: Audit) -> Iterator[Line]:
    """What of a library can be used, and how its adapters relate."""
    rows = screened(audit).members
    if not rows:
        return
    copies = [f"{row.name} = {row.same_as}" for row in rows if row.state == "duplicate"]
    copies += [f"{r.name} scales {r.same_as}" for r in rows if r.same_as and r.state == "usable"]
    yield "copies", first_names(copies, MOST_TOLD)
    sizes = Counter(row.family for row in rows if row.family is not None)
    groups = f"{count(len(sizes), 'group')} of adapters that point the same way"
    yield "families", f"{groups}, {sum(sizes.values())} in all" if sizes else ""
    far = [f"{row.name} ({number(row.norm)})" for row in rows if row.outlier]
    yield "outliers", f"extreme norms: {first_names(far, MOST_TOLD)}" if far else ""
    references = library_words(rows, audit.provenance.arguments)
    base = () if audit.base is None else (("--base", audit.base.reference),)
    command = Command("screen", tuple(references), (*base, ("--task", TASK)))
    yield "next", command
    yield FILL_IN, to_fill_in(command)


def library_words(rows: Sequence[LibraryAdapter], arguments: Sequence[str]) -> list[str]:
    """What can be used of a library as a command line names it: by files, "-" or references.

    arguments: the words of the command line, as they may be published. A row has the last part of
    a place, which a word has whole.
    """
    usable = [row for row in rows if row.state == "usable"]
    known = {text for row in usable for text in (row.reference, f"{row.name}={row.reference}")}
    others = {row.reference for row in rows} - known

    def is_named(word: str) -> bool:
        name, equals, place = word.rpartition("=")
        last = name + equals + place.rpartition("/")[2]
        return word in known or (place not in others and last in known)

    given = [word for word in arguments if word == "-" or word.startswith("@") or is_named(word)]
    return given or [row.reference for row in usable]


# ---- the sections --------------------------------------------------------------------------------


def shortlist(audit: Audit) -> Table:
    """The sets that were proved, the best first, each with its best composition."""
    rounds = audit.evaluation.rounds
    asked = count(rounds.total if rounds is not None else 0, "question")
    return tabulated(
        f"Short list, proved on up to {asked}",
        screened(audit).shortlist,
        (text("adapters"), lambda row: ", ".join(row.adapters)),
        (Column("place", drop=2), lambda row: str(row.place)),
        (
            Column("forecast", drop=1),
            lambda row: signed(row.forecast.gain) if row.forecast else "-",
        ),
        (Column("gain"), lambda row: signed(row.gain.difference) if row.gain else "-"),
        (Column("95 %", drop=3), lambda row: bounds(row.gain.adjusted_ci95) if row.gain else "-"),
        (text("by"), _method),
        (text("so"), lambda row: OUTCOMES[row.outcome]),
    )


def _method(row: Shortlisted) -> str:
    """How the best composition is made, and in which form it is asked."""
    if row.system is None:
        return "-"
    spec = display_name(row.system.removesuffix(f"({', '.join(row.adapters)})"))
    steps = row.gain is not None and row.gain.part == STEPS
    return f"{spec}, {STEPS.words}" if steps else spec


def unusable(screened: Screened) -> Table:
    """What cannot be used, a row for each kind of error and cure, with the reason of the first."""
    groups: dict[tuple[str, str, str], list[tuple[str, Issue]]] = {}
    for row in screened.members:
        errors = [issue for issue in row.issues if issue.severity == "error"]
        for issue in errors[:1] if row.state in ("broken", "unfit") else ():
            cure = CONVERTED.sub("REF", issue.cure)
            groups.setdefault((row.state, issue.code, cure), []).append((row.name, issue))
    return tabulated(
        "Cannot be used",
        groups.items(),
        (text("adapters"), lambda group: first_names([name for name, _ in group[1]], MOST_NAMES)),
        (text("state", drop=1), lambda group: group[0][0]),
        (
            text("why, and the cure", prose=True),
            lambda group: f"{first_sentence(group[1][0][1])} {group[0][2]}".rstrip(),
        ),
    )


def families(screened: Screened) -> Table:
    """Groups of adapters that point the same way."""
    groups: dict[int, list[LibraryAdapter]] = {}
    for row in screened.members:
        if row.family is not None:
            groups.setdefault(row.family, []).append(row)
    return tabulated(
        "Families of adapters that point the same way",
        sorted(groups.items()),
        (text("family"), lambda group: str(group[0])),
        (Column("adapters"), lambda group: str(len(group[1]))),
        (
            Column("norm", drop=1),
            lambda group: spread([row.norm for row in group[1] if row.norm is not None]),
        ),
        (
            text("members", prose=True),
            lambda group: first_names([row.name for row in group[1]], MOST_NAMES),
        ),
    )


def usable(screened: Screened) -> Table:
    """The first adapters of the library that can be used."""
    rows = [row for row in screened.members if row.state == "usable"]
    first = f" (the first {MOST_USABLE} of {len(rows)})" if len(rows) > MOST_USABLE else ""
    table = tabulated_adapters(f"Can be used{first}", rows[:MOST_USABLE])
    told = (at for at, cells in enumerate(zip(*table.rows, strict=True)) if set(cells) != {"-"})
    return table.of(at for at in told if table.columns[at].heading != "state")


def tabulated_adapters(caption: str, rows: Iterable[LibraryAdapter]) -> Table:
    """A row for each adapter of a library."""
    return tabulated(
        caption,
        rows,
        (text("adapter"), lambda row: row.name),
        (text("state"), _state),
        (text("base", drop=5), lambda row: row.base_model or "-"),
        (Column("rank", drop=3), lambda row: spread((row.rank or {}).values())),
        (Column("modules", drop=4), lambda row: str(row.modules) if row.modules else "-"),
        (Column("parameters", roomy=True), lambda row: rounded(row.parameters)),
        (Column("norm"), lambda row: number(row.norm) + ("!" if row.outlier else "")),
        (Column("family", drop=1), lambda row: str(row.family or "-")),
        folded=True,
    )


def _state(row: LibraryAdapter) -> str:
    """What an adapter can be used for, and of which it is a copy."""
    if row.same_as is None:
        return row.state
    return f"copy of {row.same_as}" if row.state == "duplicate" else f"scaled {row.same_as}"


def library_findings(screened: Screened) -> Table:
    """Warnings and errors about single adapters."""
    rows = [(row, issue) for row in screened.members for issue in row.issues]
    return tabulated(
        "Findings about the library",
        [(row, issue) for row, issue in rows if issue.severity != "note"],
        (text("adapter"), lambda pair: pair[0].name),
        (text("code"), lambda pair: pair[1].code),
        (text("what it means, and its cure", prose=True), lambda pair: meaning(pair[1])),
        folded=True,
    )


def library_map(screened: Screened) -> Iterator[Figure]:
    """The map of the library, where at least three adapters have a place on it."""
    placed = [row for row in screened.members if row.place is not None]
    if len(placed) < 3 or screened.library is None:
        return
    share = screened.library.map_share
    shown = f" The map shows {share:.0%} of the squared distances." if share is not None else ""
    description = (
        f"{count(len(placed), 'adapter')} by how alike their updates are: those that lie together "
        "point the same way. Filled dots belong to a family; the largest are numbered. Only "
        f"distances mean something.{shown}"
    )
    table = tabulated(
        "The map of the library",
        placed,
        (text("adapter"), lambda row: row.name),
        (Column("family"), lambda row: str(row.family or "-")),
        (Column("across"), lambda row: number(row.place[0]) if row.place else "-"),
        (Column("up"), lambda row: number(row.place[1]) if row.place else "-"),
    )
    families: dict[int | None, list[tuple[float, float]]] = {}
    for row in placed:
        if row.place is not None:
            families.setdefault(row.family, []).append(row.place)
    empty = families.pop(None, [])
    labels = [
        (str(family), (mean(x for x, _ in places), mean(y for _, y in places)))
        for family, places in sorted(families.items())
        if family and family <= NUMBERED
    ]
    filled = [one for places in families.values() for one in places]
    data = {"empty": empty, "filled": filled, "labels": labels}
    yield Figure("library-map", table.caption, description, table, "scatter", data)
