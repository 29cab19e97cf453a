"""The tables about a library: what cannot be used, families, every adapter, map, short list."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from loraprobe.formatting import count, first_names
from loraprobe.records import Audit, Issue, LibraryAdapter, Shortlisted
from loraprobe.report.figures import About, MapPoint, scatter
from loraprobe.report.formatting import number, rounded, spread
from loraprobe.report.maps import Figure
from loraprobe.report.phrases import first_sentence
from loraprobe.report.system_tables import bounds, form, signed
from loraprobe.report.table import Column, Table, tabulated, text

MOST_NAMES = 8  # of a family, in its line
SHORT = 5  # families that are shown without --explain
OUTCOMES = {"compose": "compose", "single": "use alone", "none": "no gain", "open": "open"}


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
        unusable_of(audit),
        (text("adapter"), lambda row: row.name),
        (text("state", drop=1), lambda row: row.state),
        (text("why", prose=True), lambda row: _told(reason(row))),
        (text("cure", prose=True), lambda row: _cure(reason(row))),
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
            first_names([row.name for row in rows], MOST_NAMES),
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
        (Column("rank", drop=3), lambda row: spread(list((row.rank or {}).values()))),
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


def chart(audit: Audit) -> Iterator[Figure]:
    """The map of the library, where at least three adapters have a place on it."""
    placed = [row for row in members(audit) if row.place is not None]
    if len(placed) < 3 or audit.library is None:
        return
    held = grouped(audit)
    alone = sum(row.family is None for row in placed)
    share = audit.library.map_share
    shown = f" The map shows {share:.0%} of the squared distances." if share is not None else ""
    description = (
        f"{count(len(placed), 'adapter')} by how alike their updates are: those that lie together "
        f"point the same way. {count(len(held), 'group')} of at least two; {alone} stand alone."
        f"{shown}"
    )
    points = [
        MapPoint(*row.place, row.family, row.outlier) for row in placed if row.place is not None
    ]
    about = About("library-map", "The map of the library", description)
    caption = (
        "A dot for each adapter; filled dots belong to a family, the largest are numbered, a ring "
        "marks an extreme norm. Only distances mean something."
    )
    table = tabulated(
        about.title,
        placed,
        (text("adapter"), lambda row: row.name),
        (Column("family"), lambda row: str(row.family or "-")),
        (Column("across"), lambda row: number(row.place[0]) if row.place else "-"),
        (Column("up"), lambda row: number(row.place[1]) if row.place else "-"),
    )
    yield Figure(scatter(about, points), caption, table)


def _state(row: LibraryAdapter) -> str:
    if row.same_as is None:
        return row.state
    return f"copy of {row.same_as}" if row.state == "duplicate" else f"scaled {row.same_as}"


def _told(issue: Issue | None) -> str:
    return first_sentence(issue) if issue is not None else "-"


def _cure(issue: Issue | None) -> str:
    return (issue.cure if issue is not None else "") or "-"


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


ALL: Sequence[Callable[[Audit], Table]] = (
    adapters,
    findings,
    families,
    shortlist,
)  # with --explain
