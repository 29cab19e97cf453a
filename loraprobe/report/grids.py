"""The tables of a page and of a pull request: plain cells, one function a table."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from loraprobe.records import Audit, Coverage, Interval, Sample, Score
from loraprobe.report.figures import CAUSES
from loraprobe.report.formatting import interval, measured, number
from loraprobe.report.scores import PARTS, in_order, part_order


@dataclass(frozen=True)
class Grid:
    """A table: a caption, headings, rows. The first column names its row.

    `texts` holds the positions of columns of text; the others hold figures.
    """

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: Container[int] = (0,)

    def without_constant(self, column: str) -> Grid:
        """The table without a column in which all rows agree; the caption then says it."""
        at = self.columns.index(column)
        values = {row[at] for row in self.rows}
        if len(values) != 1:
            return self
        kept = [i for i in range(len(self.columns)) if i != at]
        return Grid(
            f"{self.caption}: {values.pop()}",
            [self.columns[i] for i in kept],
            [[row[i] for i in kept] for row in self.rows],
            [kept.index(i) for i in kept if i in self.texts],
        )


def form(part: str) -> str:
    """The part of a task in the words of every report."""
    return PARTS.get(part, part.replace("hop", "hop "))


def signed(value: float | None) -> str:
    """A difference with its sign."""
    if not measured(value):
        return "-"
    return number(value) if value < 0 else f"+{number(value)}"


def bounds(ci95: Interval | None) -> str:
    """The interval of a difference, which may hold signs."""
    if ci95 is None:
        return "-"
    low, high = (number(round(bound, 2)) if measured(bound) else "-" for bound in ci95)
    return f"[{low}, {high}]"


def scores(audit: Audit, intervals: bool = True) -> list[Grid]:
    """Systems down, forms of the question across, a table a task."""
    made = []
    for task in dict.fromkeys(row.task for row in audit.evaluation):
        rows = [row for row in audit.evaluation if row.task == task]
        parts = sorted({row.part for row in rows}, key=part_order)
        retained = any(row.retention is not None for row in rows)
        systems = in_order(rows)
        cells = {(row.system, row.part): row for row in rows}
        lines = []
        for system in systems:
            own = [cells.get((system, part)) for part in parts]
            line = [system, *(_score(row, intervals) for row in own)]
            kept = next((row.retention for row in own if row and row.retention is not None), None)
            lines.append([*line, number(kept)] if retained else line)
        columns = ["system", *map(form, parts), *(["retention"] if retained else [])]
        items, metric = (
            max(row.n for row in rows),
            min(rows, key=lambda row: part_order(row.part)).metric,
        )
        made.append(Grid(f"{task}: {items} items, {metric}", columns, lines))
    return made


def _score(row: Score | None, intervals: bool) -> str:
    if row is None:
        return "-"
    ci95 = interval(row.ci95) if intervals and not row.part.startswith("hop") else ""
    return f"{number(row.value)} {ci95}".strip()


def gains(audit: Audit) -> Grid:
    """What every composition gains over the best of base and single adapters, largest first."""
    rows = sorted(audit.gains, key=lambda gain: -gain.difference)
    lines = [
        [
            gain.system,
            form(gain.part),
            signed(gain.difference),
            bounds(gain.ci95),
            bounds(gain.adjusted_ci95),
            gain.against,
            gain.task or "all tasks",
            str(gain.n),
            str(gain.n_needed or "-"),
        ]
        for gain in rows
    ]
    columns = "system,asked as,gain,95 %,95 % for the choice,against,task,items,items to decide"
    caption = "Gains over the best of base and single adapters"
    return Grid(caption, columns.split(","), lines, (0, 1, 5, 6)).without_constant("task")


def comparisons(audit: Audit) -> Grid:
    """The paired difference of every composition to every other system."""
    lines = [
        [
            row.system,
            row.against,
            form(row.part),
            row.task,
            signed(row.difference),
            bounds(row.ci95),
            bounds(row.adjusted_ci95),
            str(row.n),
        ]
        for row in audit.comparisons
    ]
    columns = "system,against,asked as,task,difference,95 %,95 % for the choice,items"
    made = Grid("Paired differences between systems", columns.split(","), lines, range(4))
    return made.without_constant("task")


def causes(audit: Audit) -> Grid:
    """How many items of each composition fall to which cause."""
    names = [name for name, _ in CAUSES.values()]
    lines = [
        [row.system, row.task, *(str(getattr(row, cause)) for cause in CAUSES)]
        for row in audit.attribution
    ]
    made = Grid("Items by the first cause that fits", ["system", "task", *names], lines, range(2))
    return made.without_constant("task")


def coverage(audit: Audit) -> Grid:
    """What the base and each adapter alone know."""
    lines = [
        [
            row.name.replace("_", " "),
            row.task,
            " → ".join(row.adapters) or "base",
            f"hop {row.hop}" if row.hop else "question",
            number(row.value),
            number(row.baseline),
            interval(row.ci95),
            str(row.n),
        ]
        for row in sorted(audit.coverage, key=_coverage_place)
    ]
    columns = "probe,task,of,part,value,guess,95 %,items".split(",")
    made = Grid("What base and adapters know alone", columns, lines, range(4))
    return made.without_constant("task")


def _coverage_place(row: Coverage) -> tuple[str, str]:
    return row.task, row.name


def forecasts(audit: Audit) -> Grid:
    """What was forecast before anything was composed."""
    lines = [
        [
            row.system,
            form(row.part),
            row.against,
            signed(row.gain),
            bounds(row.ci95),
            str(row.n),
        ]
        for row in audit.forecasts
    ]
    columns = "system,asked as,against,forecast gain,95 %,items".split(",")
    caption = "Forecast gains, if the adapters' effects on the next token simply added"
    return Grid(caption, columns, lines, range(3))


def reasons(audit: Audit) -> Grid:
    """Every reason of the verdict with its figure, its threshold and where that comes from."""
    found = audit.verdict.reasons if audit.verdict is not None else ()
    lines = [
        [
            row.code,
            row.severity,
            row.message,
            row.source or "-",
            number(row.value),
            number(row.threshold),
        ]
        for row in found
    ]
    columns = "code,weight,what was measured,where the threshold comes from,value,threshold"
    return Grid("Reasons", columns.split(","), lines, range(4))


def replies(sample: Sample) -> Grid:
    """What each system answered to one question, and why compositions fail it."""
    lines = [
        [
            reply.system,
            reply.text or "(nothing)",
            "right" if reply.right else "wrong",
            CAUSES[reply.cause][0] if reply.cause in CAUSES else "-",
        ]
        for reply in sample.replies
    ]
    columns = ["system", "answer", "right or wrong", "first cause"]
    return Grid("What each system answered", columns, lines, range(4))
