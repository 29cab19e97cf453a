"""What a report says of a library: the answer without a task, and the tables."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from loraprobe.compatibility import CODES
from loraprobe.formatting import count, first_names, number, rounded, spread
from loraprobe.records import Audit, Issue, Library, LibraryAdapter, Provenance, Shortlisted
from loraprobe.report.adapter_tables import first_sentence
from loraprobe.report.system_tables import bounds, form, signed
from loraprobe.report.table import Column, Table, tabulated, text
from loraprobe.verdict.next_command import TASK, library_words

Line = tuple[str, str]  # a label of the answer and what stands behind it
MOST_NAMES = 3  # in a line of the answer
MOST_MEMBERS = 8  # of a family, in its line
SHORT = 5  # families that are shown without --explain
OUTCOMES = {"compose": "compose", "single": "use alone", "chain": "ask hop after hop"}
OUTCOMES |= {"none": "no gain", "open": "open"}


def headline(library: Library) -> str:
    """How many adapters can be used."""
    usable = sum(row.state == "usable" for row in library.adapters)
    total = count(len(library.adapters), "adapter")
    if usable == len(library.adapters):
        return f"LIBRARY: all of {total} can be used." if usable > 1 else f"LIBRARY: {total}."
    return f"LIBRARY: {usable} of {total} can be used."


def labelled(library: Library, provenance: Provenance) -> Iterator[Line]:
    """The lines below the headline."""
    rows = library.adapters
    for state in ("broken", "unfit"):
        yield state, _by_reason([row for row in rows if row.state == state])
    yield "copies", _copies(rows)
    yield "families", _families(rows)
    yield "outliers", _outliers(rows)
    references = library_words(rows, provenance.arguments)
    yield "next", shlex.join(["loraprobe", "screen", *references, "--task", TASK])


def one_line(library: Library) -> str:
    """How many adapters can be used, for --quiet."""
    usable = sum(row.state == "usable" for row in library.adapters)
    return f"{usable} of {len(library.adapters)} usable"


def _by_reason(rows: Sequence[LibraryAdapter]) -> str:
    """Adapters by the meaning of the first finding that excludes them."""
    found: dict[str, list[str]] = {}
    for row in rows:
        code = next((i.code for i in row.issues if i.severity == "error"), "")
        found.setdefault(CODES.get(code, code), []).append(row.name)
    told = [f"{first_names(names, MOST_NAMES)} ({why})" for why, names in found.items()]
    return f"{len(rows)}: {'; '.join(told)}" if told else ""


def _copies(rows: Sequence[LibraryAdapter]) -> str:
    equal = [f"{row.name} = {row.same_as}" for row in rows if row.state == "duplicate"]
    others = [row for row in rows if row.same_as is not None and row.state != "duplicate"]
    scaled = [f"{row.name} of {row.same_as}" for row in others]
    told = [f"{len(equal)} left out ({first_names(equal, MOST_NAMES)})"] if equal else []
    told += [f"{len(scaled)} only scaled ({first_names(scaled, MOST_NAMES)})"] if scaled else []
    return "; ".join(told)


def _families(rows: Sequence[LibraryAdapter]) -> str:
    held = [row for row in rows if row.place is not None]
    sizes: dict[int, int] = {}
    for row in held:
        if row.family is not None:
            sizes[row.family] = sizes.get(row.family, 0) + 1
    if len(held) < 2:
        return ""
    alone = len(held) - sum(sizes.values())
    if not sizes:
        return f"none: all {len(held)} point in different directions"
    least, most = min(sizes.values()), max(sizes.values())
    spread = f"{least}" if least == most else f"{least} to {most}"
    groups = f"{len(sizes)} of {spread} adapters that point the same way"
    return f"{groups}; {alone} stand alone" if alone else groups


def _outliers(rows: Sequence[LibraryAdapter]) -> str:
    found = [f"{row.name} ({number(row.norm)})" for row in rows if row.outlier]
    return f"{len(found)} of extreme norm: {first_names(found, MOST_NAMES)}" if found else ""


def members(audit: Audit) -> Sequence[LibraryAdapter]:
    """The adapters of the library; none where there is no library."""
    return audit.library.adapters if audit.library is not None else ()


def unusable_of(audit: Audit) -> list[LibraryAdapter]:
    """Adapters that cannot be used; copies of others are not among them."""
    return [row for row in members(audit) if row.state in ("broken", "unfit")]


def unusable(audit: Audit) -> Table:
    """What cannot be used, with reason and cure."""
    return tabulated(
        "Cannot be used",
        [(row, reason(row)) for row in unusable_of(audit)],
        (text("adapter"), lambda pair: pair[0].name),
        (text("state", drop=1), lambda pair: pair[0].state),
        (text("why", prose=True), lambda pair: first_sentence(pair[1]) if pair[1] else "-"),
        (text("cure", prose=True), lambda pair: (pair[1].cure if pair[1] else "") or "-"),
    )


def reason(row: LibraryAdapter) -> Issue | None:
    """The finding that makes an adapter broken or unfit: the first error."""
    return next((issue for issue in row.issues if issue.severity == "error"), None)


def families(audit: Audit, most: int | None = None) -> Table:
    """Groups of adapters that point the same way. most: rows, None for all."""
    held = grouped(audit)
    many = f" (the largest {most} of {len(held)})" if most and len(held) > most else ""
    lines = [
        [
            str(number_),
            str(len(rows)),
            spread([row.norm for row in rows if row.norm is not None]),
            first_names([row.name for row in rows], MOST_MEMBERS),
        ]
        for number_, rows in list(held.items())[:most]
    ]
    columns = [text("family"), Column("adapters"), Column("norm", drop=1)]
    return Table(
        f"Families of adapters that point the same way{many}",
        [*columns, text("members", prose=True)],
        lines,
    )


def grouped(audit: Audit) -> dict[int, list[LibraryAdapter]]:
    """Number of a family -> its members, in order."""
    held: dict[int, list[LibraryAdapter]] = {}
    for row in members(audit):
        if row.family is not None:
            held.setdefault(row.family, []).append(row)
    return dict(sorted(held.items()))


def adapters(audit: Audit) -> Table:
    """Every adapter of the library, as it was read."""
    return tabulated(
        "The library",
        members(audit),
        (text("adapter"), lambda row: row.name),
        (text("state"), _state),
        (text("base", drop=5), lambda row: row.base_model or "-"),
        (Column("rank", drop=3), lambda row: spread((row.rank or {}).values())),
        (Column("modules", drop=4), lambda row: str(row.modules) if row.modules else "-"),
        (Column("parameters", roomy=True), lambda row: rounded(row.parameters)),
        (Column("norm"), lambda row: number(row.norm) + ("!" if row.outlier else "")),
        (Column("family", drop=1), lambda row: str(row.family or "-")),
    )


def findings(audit: Audit) -> Table:
    """Warnings and errors about single adapters."""
    rows = [(row, issue) for row in members(audit) for issue in row.issues]
    return tabulated(
        "Findings about the library",
        [(row, issue) for row, issue in rows if issue.severity != "note"],
        (text("adapter"), lambda pair: pair[0].name),
        (text("code"), lambda pair: pair[1].code),
        (text("what it means", prose=True), lambda pair: pair[1].message),
        (text("cure", prose=True), lambda pair: pair[1].cure or "-"),
    )


def _state(row: LibraryAdapter) -> str:
    if row.same_as is None:
        return row.state
    return f"copy of {row.same_as}" if row.state == "duplicate" else f"scaled {row.same_as}"


def screened(audit: Audit) -> bool:
    """Whether a library was screened for a task."""
    return audit.command == "screen" and bool(audit.shortlist)


def shortlist(audit: Audit) -> Table:
    """The sets that were proved, the best first, each with its best composition."""
    items = {row.task: row.proving for row in audit.library.items} if audit.library else {}
    asked = " and ".join(f"{count(n, 'question')} of {task}" for task, n in items.items())
    return tabulated(
        f"Short list, proved on up to {asked}",
        audit.shortlist,
        (text("adapters"), lambda row: ", ".join(row.adapters)),
        (Column("place", drop=2), lambda row: str(row.place)),
        (Column("forecast", drop=1), _forecast),
        (Column("gain"), lambda row: signed(row.gain.difference) if row.gain else "-"),
        (Column("95 %", drop=3), lambda row: bounds(row.gain.adjusted_ci95) if row.gain else "-"),
        (text("by"), _method),
        (text("so"), lambda row: OUTCOMES[row.outcome]),
    )


def _forecast(row: Shortlisted) -> str:
    return signed(row.forecast.gain) if row.forecast is not None else "-"


def _method(row: Shortlisted) -> str:
    """How the best composition is made, and in which form it is asked."""
    if row.system is None:
        return "-"
    spec = row.system.removesuffix(f"({', '.join(row.adapters)})")
    steps = row.gain is not None and row.gain.part == "steps"
    return f"{spec}, {form('steps')}" if steps else spec
