"""A table as every report shows it: a caption, columns, cells of plain text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

Row = TypeVar("Row")


@dataclass(frozen=True)
class Column:
    """A column of figures, or of text, which stands at its left; `prose` holds sentences.

    drop: columns of a higher number leave a narrow terminal first; 0 stays. roomy: only a page has
    room for it. styles: a regular expression -> the style of what it finds on a terminal.
    """

    heading: str
    figure: bool = True
    drop: int = 0
    prose: bool = False
    roomy: bool = False
    styles: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """A table of at least one column. The first names the row."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]

    def without(self, heading: str) -> Table:
        """The table without a column in which all rows agree; the caption then says it."""
        at = next(i for i, column in enumerate(self.columns) if column.heading == heading)
        values = {row[at] for row in self.rows}
        if len(values) != 1:
            return self
        kept = self.of(i for i in range(len(self.columns)) if i != at)
        return replace(kept, caption=f"{self.caption}: {values.pop()}")

    def of(self, places: Iterable[int]) -> Table:
        """The table with only the columns at these places."""
        kept = list(places)
        rows = [[row[i] for i in kept] for row in self.rows]
        return replace(self, columns=[self.columns[i] for i in kept], rows=rows)


def tabulated(
    caption: str, rows: Iterable[Row], *columns: tuple[Column, Callable[[Row], str]]
) -> Table:
    """A table with a line for each record; each column says how its cell is made of the record."""
    lines = [[cell(row) for _, cell in columns] for row in rows]
    return Table(caption, [column for column, _ in columns], lines)


def text(heading: str, drop: int = 0, *, prose: bool = False, roomy: bool = False) -> Column:
    """A column of names or words."""
    return Column(heading, False, drop, prose, roomy)


def figures(*headings: str) -> list[Column]:
    """Columns of figures that stay on every terminal."""
    return [Column(heading) for heading in headings]
