"""What every report is made of: sections of answers, sentences, tables and figures.

What prints sections, as `terminal` does, knows nothing of audits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from loraprobe.formatting import clean, wrapped
from loraprobe.records import Command

Row = TypeVar("Row")
View = Literal["short", "explained", "page", "markdown"]
SHORT: tuple[View, ...] = ("short",)  # a terminal without --explain
EXPLAINED: tuple[View, ...] = ("explained",)  # a terminal with it
PAGE: tuple[View, ...] = ("page",)  # a document that has room for all
MARKDOWN: tuple[View, ...] = ("markdown",)  # a comment that has room for two tables
TERMINAL: tuple[View, ...] = (*SHORT, *EXPLAINED)
INDENT, LABEL = 2, 10  # columns before a label of the answer, and of the label


@dataclass(frozen=True)
class Column:
    """A column of figures, or of text, which stands at its left; `prose` holds sentences.

    drop: columns of a higher number leave a narrow terminal first; 0 stays. roomy: only a page has
    room for it. bars: a share of each row, from 0 to 1, which a terminal draws beside the cell
    where it has room.
    """

    heading: str
    figure: bool = True
    drop: int = 0
    prose: bool = False
    roomy: bool = False
    bars: Sequence[float | None] = ()


@dataclass(frozen=True)
class Table:
    """A table of at least one column, the first of which names the row.

    folded: a page shows it on demand. advised: the places of rows that a page marks as what is
    advised.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    folded: bool = False
    advised: Sequence[int] = ()

    def __bool__(self) -> bool:
        return bool(self.rows)

    def without(self, heading: str) -> Table:
        """The table without a column in which all rows agree; the caption then says it."""
        at = next(i for i, column in enumerate(self.columns) if column.heading == heading)
        values = {row[at] for row in self.rows}
        if len(values) != 1:
            return self
        table = self.of(i for i in range(len(self.columns)) if i != at)
        return replace(table, caption=f"{self.caption}: {values.pop()}")

    def of(self, places: Iterable[int]) -> Table:
        """The table with only the columns at these places."""
        chosen = list(places)
        rows = [[row[i] for i in chosen] for row in self.rows]
        return replace(self, columns=[self.columns[i] for i in chosen], rows=rows)


def tabulated(
    caption: str,
    rows: Iterable[Row],
    *columns: tuple[Column, Callable[[Row], str]],
    folded: bool = False,
) -> Table:
    """A table with a line for each record; each column says how its cell is made of the record."""
    lines = [[cell(row) for _, cell in columns] for row in rows]
    return Table(caption, [column for column, _ in columns], lines, folded)


def text(heading: str, drop: int = 0, *, prose: bool = False, roomy: bool = False) -> Column:
    """A column of names or words."""
    return Column(heading, False, drop, prose, roomy)


def figures(*headings: str) -> list[Column]:
    """Columns of figures that stay on every terminal."""
    return [Column(heading) for heading in headings]


@dataclass(frozen=True)
class Figure:
    """A drawing, for reports that have some, and the table of what it shows, for the others.

    `name` is an id. `title` and `description` stand above it, and tell its content to a reader who
    cannot see it. `kind` says how `data` is drawn. "heat": `values` [rows, columns], NaN where
    nothing was measured, the names of `rows` and `columns`, `most`, which is the value of the
    darkest cell (None for a scale from -1 to 1), and `marked`, the places (row, column) of cells
    that have a circle. "scatter": points (across, up) that are `empty` or `filled`, and `labels`,
    texts with points.
    """

    name: str
    title: str
    description: str
    table: Table
    kind: str
    data: Mapping[str, Any]


Line = tuple[str, str | Command]  # of an answer: a label and what stands behind it


class AlwaysShown(str):
    """A sentence of an answer that is never left out, whatever else there is to say."""


@dataclass(frozen=True)
class Answer:
    """What a reader needs who reads nothing else: the decision, a headline, and labelled lines.

    `decision` is the verdict's, "" where there is none.
    """

    decision: str
    headline: str
    lines: tuple[Line, ...]

    def __str__(self) -> str:
        return "\n".join([*wrapped(clean(self.headline), 80), *self.rows(80)])

    def rows(self, width: int) -> Iterator[str]:
        """The lines below the headline as plain text, wrapped at `width` columns.

        A command is whole: it goes on in the next row after a backslash. The rows of a program
        stand at the margin behind their label, to be copied.
        """
        previous = ""
        for label, content in self.lines:
            head = " " * INDENT + ("" if label == previous else label).ljust(LABEL)
            room, program = width - len(head), list[str]()
            if not isinstance(content, Command):
                rows = wrapped(clean(content), room)
            elif content.in_python:
                program = clean(content).split("\n")
                rows = ["these lines:"] if len(program) > 1 else program
            else:
                rows = list(_continued(map(clean, content.pieces), room))
            for row in rows:
                yield head + row
                head = " " * len(head)
            previous = label
            yield from program if len(program) > 1 else ()


def _continued(pieces: Iterable[str], width: int) -> Iterator[str]:
    """The pieces of a command in rows that a shell reads as one."""
    row = ""
    for piece in pieces:
        if row and len(row) + len(piece) + 3 > width:
            yield f"{row} \\"
            row = f"  {piece}"
        else:
            row = f"{row} {piece}" if row else piece
    yield row


Part = str | Table | Figure | Answer


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, each part with the views that show it.

    Empty parts are left out. concludes: a terminal prints the section after all others, whose order
    it turns, because it is read from its end. folded: a page shows what stands below the heading on
    demand.
    """

    name: str
    title: str
    parts: Sequence[tuple[Sequence[View], Part]]
    concludes: bool = False
    folded: bool = False

    def shown(self, view: View) -> list[Part]:
        """The parts that a view shows."""
        return [part for views, part in self.parts if part and view in views]
