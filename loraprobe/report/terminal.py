"""Sections on a terminal, the answer last.

Columns of a table leave before words wrap, and names break at their joints. What cannot leave goes
on below, so that no column is narrower than its words.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import rich.table
from rich.console import Console
from rich.text import Text

from loraprobe.formatting import clean, wrapped
from loraprobe.report.parts import INDENT, LABEL, Answer, Figure, Section, Table, View
from loraprobe.secrets import map_texts

STYLES = {
    "likely": "bold green",
    "unlikely": "bold red",
    "inconclusive": "bold yellow",
    "incompatible": "bold red",
    "verified": "bold green",
    "not verified": "bold red",
}
GAP = 2  # columns between two columns of a table
LEAST_PROSE = 20  # the narrowest column of sentences
BAR, LONGEST_BAR = "▄", 16


def render(
    console: Console,
    title: str,
    sections: Sequence[Section],
    view: View,
    remarks: Sequence[str] = (),
) -> None:
    """Prints sections from the last to the first, because a terminal is read from its end.

    remarks: lines before the first section, which is the answer.
    """
    console.print(Text(clean(title), "bold"), no_wrap=True, overflow="ellipsis")
    early = [section for section in reversed(sections) if not section.concludes]
    late = [section for section in reversed(sections) if section.concludes]
    for section in (*early, *late):
        if section is sections[0]:
            for remark in filter(None, remarks):
                console.print()
                _sentence(console, remark)
            console.print()
        for part in section.shown(view):
            if isinstance(part, Answer):
                print_answer(console, part)
            elif isinstance(part, str):
                _sentence(console, part)
            else:
                print_table(console, part.table if isinstance(part, Figure) else part)


def _sentence(console: Console, text: str) -> None:
    first, *more = wrapped(clean(text), console.width - 2)
    console.print("\n  ".join([first, *more]), style="dim", markup=False, soft_wrap=True)


def print_answer(console: Console, answer: Answer) -> None:
    """Prints the answer with its headline and its labels in colour."""
    style = STYLES.get(answer.decision, "bold")
    for line in wrapped(answer.headline, console.width):
        console.print(Text(line, style), soft_wrap=True)
    for line in answer.rows(console.width):
        labelled = line[:INDENT].isspace() and not line[INDENT : INDENT + 1].isspace()
        head = INDENT + LABEL if labelled else 0  # not of a program, nor of a line that goes on
        console.print(Text.assemble((line[:head], "bold"), line[head:]), soft_wrap=True)


def print_table(console: Console, table: Table) -> None:
    """Prints a table below its title.

    Where it is too wide, columns leave in the order of `drop`; then the names of the rows wrap, and
    then the columns go on below, beside these names.
    """
    if not table.rows:
        return
    table = map_texts(table, lambda text: " ".join(clean(text).split()))
    table = table.of(at for at, column in enumerate(table.columns) if not column.roomy)
    widths = _needs(table)
    while _total(widths) > console.width and any(column.drop for column in table.columns):
        least = max(range(len(widths)), key=lambda at: table.columns[at].drop)
        table = table.of(at for at in range(len(widths)) if at != least)
        widths = _needs(table)
    missing = max(0, _total(widths) - console.width)
    blocks = [list(range(len(widths)))]
    if missing > widths[0] - min(widths[0], LEAST_PROSE):
        most = max(LEAST_PROSE, console.width - GAP - max(widths[1:], default=0))
        widths[0] = min(widths[0], most, max(LEAST_PROSE, console.width // 2))
        blocks = _blocks(widths, console.width)
    else:
        widths[0] -= missing
    console.print()
    console.print(Text(table.caption, "bold"), no_wrap=True, overflow="ellipsis")
    for block in blocks:
        widths_of_block = [widths[at] for at in block]
        console.print(_drawn(table.of(block), widths_of_block, console.width))


def _blocks(widths: Sequence[int], width: int) -> list[list[int]]:
    """The columns in groups, each with the first column, that fit beside each other."""
    blocks = [[0]]
    for at in range(1, len(widths)):
        if len(blocks[-1]) > 1 and _total(widths[i] for i in (*blocks[-1], at)) > width:
            blocks.append([0])
        blocks[-1].append(at)
    return blocks


def _needs(table: Table) -> list[int]:
    """The width of each column with its heading broken at spaces; a bar needs none."""
    needs = []
    for column, cells in zip(table.columns, zip(*table.rows, strict=True), strict=True):
        inside = max(map(len, cells))
        inside = min(inside, LEAST_PROSE) if column.prose else inside
        needs.append(max([inside, *map(len, column.heading.split())]))
    return needs


def _total(widths: Iterable[int]) -> int:
    columns = list(widths)
    return sum(columns) + GAP * len(columns) - GAP


def _drawn(table: Table, widths: list[int], width: int) -> rich.table.Table:
    """The table with its sentences, its headings and its bars in the room that is left."""
    spare = width - _total(widths)
    wishes = [len(column.heading) - own for column, own in zip(table.columns, widths, strict=True)]
    roomy = sum(max(0, wish) for wish in wishes) <= spare  # for headings in one line
    barred = [at for at, column in enumerate(table.columns) if column.bars]
    for at, column in enumerate(table.columns):
        if column.prose:
            widths[at] = max(widths[at] + spare, 1)
        elif roomy and at not in barred:
            widths[at] += max(0, wishes[at])
    longest = max(0, min(LONGEST_BAR, (width - _total(widths)) // max(1, len(barred)) - 1))
    drawn = rich.table.Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    cells = []
    for at, column in enumerate(table.columns):
        justify: Literal["left", "right"] = "right" if column.figure else "left"
        room = widths[at] + (longest + 1 if at in barred else 0)
        drawn.add_column(
            Text("\n".join(wrapped(column.heading, room))), justify=justify, overflow="fold"
        )
        cells.append([Text("\n".join(wrapped(row[at], room))) for row in table.rows])
        for cell, share in zip(cells[-1], column.bars, strict=False):
            if share is not None:
                cell.append(f" {BAR * round(min(1.0, max(0.0, share)) * longest)}", "cyan")
    for row in zip(*cells, strict=True):
        drawn.add_row(*row)
    return drawn
