"""What reports show of skills that are to live together."""

from __future__ import annotations

from loraprobe.extensions.screen.together.records import Skill, Together, together
from loraprobe.formatting import number
from loraprobe.records import Audit, Interval
from loraprobe.report.parts import (
    MARKDOWN,
    PAGE,
    Column,
    Figure,
    Section,
    Table,
    tabulated,
    text,
)
from loraprobe.report.sections import ALL, FULL, section

UNIFORM, MOST_ADAPTERS = "uniform", 20  # a system; of a map
MEANING = (
    "An adapter keeps in an average about what it keeps alone at the gate that equals its share of "
    "the average, less what others take from it. Inner products of the updates tell the share, and "
    "two merges of two for each adapter what others take and how much counts that updates have "
    "alike. The group that is measured was composed and asked other items, and the verdict is "
    "about that."
)


def skills_section(audit: Audit) -> Section:
    """The adapters, the groups, and the forecasts of all pairs."""
    found = together(audit)
    return section(
        "together",
        "Skills together",
        (PAGE, [MEANING]),
        ((*ALL, *MARKDOWN), [_skills(found), _groups(found, _measured(audit))]),
        (FULL, [_pairs(found)]),
        (PAGE, _heat_map(found)),
    )


def _skills(found: Together) -> Table:
    known = any(one.known for one in found.skills)
    at_half = {
        one.adapter: next((kept for gate, kept, _ in one.curve if gate == 0.5), None)
        for one in found.skills
    }
    return tabulated(
        "Each adapter's skill, and the share that it keeps",
        found.skills,
        (text("adapter"), lambda row: row.adapter),
        (text("task", 3), lambda row: row.task),
        (Column("base"), lambda row: number(row.base)),
        (Column("alone"), lambda row: number(row.alone)),
        (Column("alone at half", drop=2), lambda row: number(at_half[row.adapter])),
        (Column("others take", drop=2), lambda row: number(_rounded(row.interference))),
        (Column("in a pair"), lambda row: number(row.keeps)),
        (Column("items", drop=4), lambda row: str(row.n)),
        *([(text("known from", 5), lambda row: row.known)] if known else []),
    )


def _groups(found: Together, measured: float | None) -> Table:
    return tabulated(
        "The least that an adapter keeps in the uniform merge of a group",
        found.groups,
        (text("adapters"), lambda row: ", ".join(row.adapters)),
        (Column("forecast"), lambda row: number(row.least)),
        (Column("95 %"), lambda row: _interval(row.ci95)),
        (Column("measured"), lambda row: number(measured if row.proved else None)),
    )


def _measured(audit: Audit) -> float | None:
    """The smallest retention of the uniform merge that was asked; None where it was not."""
    rows = (row for row in audit.evaluation.scores if row.system == UNIFORM)
    return min((row.retention for row in rows if row.retention is not None), default=None)


def _pairs(found: Together) -> Table:
    return tabulated(
        "What is kept in every pair",
        found.retentions,
        (text("adapter"), lambda row: row.adapter),
        (text("beside"), lambda row: ", ".join(row.partners)),
        (Column("share"), lambda row: number(row.share)),
        (Column("keeps"), lambda row: number(row.value)),
        (Column("95 %"), lambda row: _interval(row.ci95)),
        (text("measured"), lambda row: "yes" if row.measured else ""),
        folded=True,
    )


def _heat_map(found: Together) -> list[Figure]:
    """Rows keep, columns are the partners; the adapters that keep most come first."""
    rows = sorted((one for one in found.skills if one.keeps is not None), key=_most)
    names = [one.adapter for one in rows][:MOST_ADAPTERS]
    if len(names) < 3:
        return []
    cells = {(one.adapter, one.partners[0]): one for one in found.retentions}
    values = [
        [cell.value if (cell := cells.get((row, column))) else float("nan") for column in names]
        for row in names
    ]

    measured = [key for key, cell in cells.items() if cell.measured and {*key} <= {*names}]
    marked = [(names.index(row), names.index(column)) for row, column in measured]
    return [
        Figure(
            "together-map",
            "What each adapter keeps beside each other one",
            "A row is an adapter, a column its partner in a uniform merge of two. Darker is more; "
            "a circle marks what was measured."
            + (
                f" The first {len(names)} of {len(rows)} are drawn."
                if len(rows) > len(names)
                else ""
            ),
            _pairs(found),
            "heat",
            {"values": values, "rows": names, "columns": names, "most": 1.0, "marked": marked},
        )
    ]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2) + 0.0  # no -0.0


def _interval(ends: Interval) -> str:
    """A share is told from 0 to 1."""
    return f"{number(max(0.0, ends[0]))} to {number(min(1.0, ends[1]))}"


def _most(one: Skill) -> float:
    return -(one.keeps or 0.0)
