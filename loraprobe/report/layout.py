"""Tables that fit a terminal: columns leave before words wrap, names break at their joints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from loraprobe.report.formatting import clean
from loraprobe.report.joints import wrapped

GAP = 2  # columns between two columns of a table
LEAST_PROSE = 20  # the narrowest column of sentences


@dataclass(frozen=True)
class Column:
    """A column: figures stand at its right, `prose` may wrap.

    drop: columns of a higher number leave a narrow table first; 0 stays.
    """

    heading: str
    figure: bool = True
    drop: int = 0
    prose: bool = False


@dataclass(frozen=True)
class Part:
    """A table with its title, which is one line."""

    title: str
    table: Table


def name(heading: str) -> Column:
    """The first column of a table, which holds names."""
    return Column(heading, figure=False)


def fitted(
    title: str, columns: Sequence[Column], rows: Iterable[Sequence[str | Text]], width: int
) -> Part | None:
    """A table of at most `width` columns; None without rows."""
    cells = [[cell if isinstance(cell, Text) else clean(cell) for cell in row] for row in rows]
    if not cells:
        return None
    columns = [replace(column, heading=clean(column.heading)) for column in columns]
    found = [_needs(column, [row[at] for row in cells]) for at, column in enumerate(columns)]
    kept = list(range(len(columns)))
    while _total(found[at][0] for at in kept) > width:
        least = max(kept, key=lambda at: columns[at].drop)
        if columns[least].drop == 0:
            break
        kept.remove(least)
    roomy = _total(found[at][1] for at in kept) <= width
    widths = {at: found[at][roomy] for at in kept}
    spare = width - _total(widths.values())
    prose = [at for at in kept if columns[at].prose]
    if prose or spare < 0:  # what is left is for sentences; what is missing, names give
        gives = prose or kept[:1]
        for at in gives:
            widths[at] = max(1, widths[at] + spare // len(gives))
    made = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    for at in kept:
        justify: Literal["left", "right"] = "right" if columns[at].figure else "left"
        heading = _cell(columns[at].heading, widths[at])
        made.add_column(heading, justify=justify, no_wrap=True)
    for row in cells:
        made.add_row(*(_cell(row[at], widths[at]) for at in kept))
    return Part(title, made)


def _needs(column: Column, cells: Sequence[str | Text]) -> tuple[int, int]:
    """The width of a column with its heading broken at spaces, and with it in one line."""
    inside = max(map(len, cells))
    if column.prose:
        inside = min(inside, LEAST_PROSE)
    words = max(map(len, column.heading.split()), default=0)
    return max(inside, words), max(inside, len(column.heading))


def _total(widths: Iterable[int]) -> int:
    found = list(widths)
    return sum(found) + GAP * len(found) - GAP


def _cell(cell: str | Text, width: int) -> str | Text:
    if isinstance(cell, Text):
        return cell
    return escape("\n".join(wrapped(cell, width)))
