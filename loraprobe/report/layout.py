"""Tables that fit a terminal: columns leave before words wrap, names break at their joints."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import rich.table
from rich.console import Group
from rich.text import Text

from loraprobe.formatting import clean, wrapped
from loraprobe.report.table import Column, Table

GAP = 2  # columns between two columns of a table
LEAST_PROSE = 20  # the narrowest column of sentences


def fits(table: Table, width: int) -> bool:
    """Whether all columns stand side by side, with their headings broken at spaces."""
    table = _for_terminals(table)
    return _total(need for need, _ in _all_needs(table)) <= width


def fitted(table: Table, width: int) -> Group | None:
    """A table of at most `width` columns below its title, which is one line; None without rows."""
    table = _for_terminals(table)
    if not table.rows:
        return None
    columns, found = table.columns, _all_needs(table)
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
        at = (prose or kept)[0]
        widths[at] = max(1, widths[at] + spare)
    return _drawn(table.of(kept), list(widths.values()))


def side_by_side(table: Table, width: int) -> Iterator[Group | None]:
    """As many tables as it takes for each to fit the width with its figures in one piece.

    Each starts with the first column.
    """
    names = min(max((len(row[0]) for row in table.rows), default=0), width // 2)
    groups: list[list[int]] = []
    left = 0
    for at, column in enumerate(table.columns[1:], 1):
        figures = max((len(row[at]) for row in table.rows), default=0)
        need = GAP + max(figures, *map(len, column.heading.split(" ")))
        if not groups or need > left:
            groups.append([])
            left = width - names
        groups[-1].append(at)
        left -= need
    for position, group in enumerate(groups):
        caption = f"{table.caption} (continued)" if position else table.caption
        yield fitted(replace(table.of([0, *group]), caption=caption), width)


def _for_terminals(table: Table) -> Table:
    """The table without what only a page has room for; all sentences stand in one column."""
    table = table.of(at for at, column in enumerate(table.columns) if not column.roomy)
    prose = [at for at, column in enumerate(table.columns) if column.prose]
    joined = [_joined(row, prose) for row in table.rows]
    heading = ", ".join(table.columns[at].heading for at in prose)
    columns = [
        replace(column, heading=clean(heading if column.prose else column.heading))
        for column in table.columns
    ]
    table = replace(table, columns=columns, rows=joined)
    return table.of(at for at in range(len(columns)) if at not in prose[1:])


def _joined(row: Sequence[str], prose: Sequence[int]) -> list[str]:
    cells = [clean(cell) for cell in row]
    if prose:
        cells[prose[0]] = " ".join(cells[at] for at in prose if cells[at] != "-")
    return cells


def _all_needs(table: Table) -> list[tuple[int, int]]:
    cells = zip(*table.rows, strict=True)
    return [_needs(column, held) for column, held in zip(table.columns, cells, strict=True)]


def _needs(column: Column, cells: Sequence[str]) -> tuple[int, int]:
    """The width of a column with its heading broken at spaces, and with it in one line."""
    inside = max(map(len, cells))
    if column.prose:
        inside = min(inside, LEAST_PROSE)
    words = max(map(len, column.heading.split()), default=0)
    return max(inside, words), max(inside, len(column.heading))


def _total(widths: Iterable[int]) -> int:
    found = list(widths)
    return sum(found) + GAP * len(found) - GAP


def _drawn(table: Table, widths: Sequence[int]) -> Group:
    made = rich.table.Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    for column, width in zip(table.columns, widths, strict=True):
        justify: Literal["left", "right"] = "right" if column.figure else "left"
        heading = "\n".join(wrapped(column.heading, width))
        made.add_column(Text(heading), justify=justify, no_wrap=True)
    for row in table.rows:
        made.add_row(*map(_cell, table.columns, row, widths))
    title = Text(clean(table.caption), "bold", no_wrap=True, overflow="ellipsis")
    return Group(title, made)


def _cell(column: Column, cell: str, width: int) -> Text:
    shown = Text("\n".join(wrapped(cell, width)))
    for pattern, style in column.styles.items():
        shown.highlight_regex(re.compile(pattern), style)
    return shown
