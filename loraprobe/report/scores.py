"""The scores of all systems: one table with bars, each task with intervals, causes of failure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.text import Text

from loraprobe.records import Audit, Score
from loraprobe.report.formatting import interval, number
from loraprobe.report.layout import GAP, Column, Part, fitted, name

FORMS = {"question": "asked plainly", "steps": "step by step"}
CONTROLS = {"random-partner": "random partner"}
BAR = "▄"
KEEPS = "keeps"  # the smallest retention of a composition
LONGEST_BAR = 16


def scores(audit: Audit, width: int) -> Part | None:
    """Systems down; across the forms of the question, or the tasks where there are several."""
    rows = [s for s in audit.evaluation if s.part in FORMS]
    if not rows:
        return None
    tasks = list(dict.fromkeys(s.task for s in rows))
    several = len(tasks) > 1
    forms = [form for form in FORMS if any(s.part == form for s in rows)]
    heads = [(task, form) for task in tasks for form in forms]
    titles = [_heading(task, form, several, len(forms)) for task, form in heads]
    found = {(s.system, s.task, s.part): s for s in rows}
    names = in_order(rows)
    bars = _bar_length(names, titles, rows, width - (len(KEEPS) + GAP) * several)
    cells: list[tuple[str | Text, ...]] = [
        (shown(system), *(_bar(found.get((system, *head)), bars) for head in heads))
        for system in names
    ]
    asked = " + ".join(str(n) for n in _items(rows, tasks))
    title = f"Scores on {asked} questions" + ("" if several else f" of {tasks[0]}")
    columns = [name("system"), *(Column(text, figure=False) for text in titles)]
    if several:
        columns.append(Column(KEEPS))
        cells = [(*row, _kept(one, rows)) for row, one in zip(cells, names, strict=True)]
    return fitted(title, columns, cells, width)


def shown(system: str) -> str:
    """A control by what it is, any other system by its name."""
    kind, _, of = system.partition(":")
    return f"{of}, smaller" if kind == "shrunk" and of else CONTROLS.get(system, system)


def _heading(task: str, form: str, several: bool, forms: int) -> str:
    if not several:
        return FORMS[form]
    return task if forms == 1 else f"{task}, {FORMS[form]}"


def _items(rows: Sequence[Score], tasks: Sequence[str]) -> list[int]:
    return [max(s.n for s in rows if s.task == task) for task in tasks]


def _bar_length(
    names: Sequence[str], titles: Sequence[str], rows: Sequence[Score], width: int
) -> int:
    """How long the bar of a full score is: what the figures leave, 0 for losses."""
    if any(s.metric == "answer_loss" for s in rows):
        return 0
    left = width - max(len(shown(one)) for one in names)
    each = left // len(titles) - GAP - len("0.00 ")
    return max(0, min(LONGEST_BAR, each))


def _bar(score: Score | None, longest: int) -> Text:
    if score is None:
        return Text("-")
    bar = BAR * round(min(1.0, max(0.0, score.value)) * longest)
    return Text.assemble(f"{number(score.value)} ", (bar, "cyan"))


def _kept(system: str, rows: Sequence[Score]) -> str:
    """The smallest retention of a composition among the tasks."""
    kept = [s.retention for s in rows if s.system == system and s.retention is not None]
    composed = any(s.system == system and s.kind in ("merge", "router") for s in rows)
    return number(min(kept)) if kept and composed else "-"


def evaluation(audit: Audit, width: int) -> Iterable[Part | None]:
    """Systems down, parts across with their intervals, a table a task."""
    for task in dict.fromkeys(s.task for s in audit.evaluation):
        rows = [s for s in audit.evaluation if s.task == task]
        parts = sorted({s.part for s in rows}, key=part_order)
        retained = any(s.retention is not None for s in rows)
        n = max(s.n for s in rows)
        metric = min(rows, key=lambda s: part_order(s.part)).metric  # that of the question
        headings = [PARTS.get(p, p.replace("hop", "hop ")) for p in parts]
        columns = [name("system"), *(Column(heading) for heading in headings)]
        if retained:
            columns.append(Column("retention"))
        systems = in_order(rows)
        wide = [_system_row(one, parts, rows, retained, intervals=True) for one in systems]
        needed = sum(max(len(row[at]) for row in wide) + 2 for at in range(len(columns)))
        short = [_system_row(one, parts, rows, retained, intervals=False) for one in systems]
        title = f"Evaluation: {task} ({n} items, {metric})"
        yield fitted(title, columns, wide if needed <= width else short, width)


def part_order(part: str) -> tuple[int, str]:
    """The question, then its hops, then the worked form."""
    return {"question": 0, "steps": 2}.get(part, 1), part


PARTS = {"question": "question", "steps": "step by step"}


GROUPS = (("base", "adapter"), ("merge", "router"), ("chain",), ("control",))


def in_order(rows: Sequence[Score]) -> list[str]:
    """The names of systems: base and single adapters, compositions, chain, controls."""
    return [
        system
        for group in GROUPS
        for system in dict.fromkeys(s.system for s in rows if s.kind in group)
    ]


def _system_row(
    system: str, parts: Sequence[str], rows: Sequence[Score], retained: bool, intervals: bool
) -> list[str]:
    scores = {s.part: s for s in rows if s.system == system}
    cells = [system]
    for part in parts:
        score = scores.get(part)
        if score is None:
            cells.append("-")
        elif part.startswith("hop") or not intervals:
            cells.append(number(score.value))
        else:
            cells.append(f"{number(score.value)} {interval(score.ci95)}")
    if retained:
        cells.append(number(next((s.retention for s in scores.values()), None)))
    return cells


def attribution(audit: Audit, width: int) -> Part | None:
    """Where the answers of each composition went."""
    causes = ("solved", "step_by_step", "unknown", "interference", "not_composed")
    columns = [name("system"), *(Column(cause.replace("_", " ")) for cause in causes)]
    several = len({row.task for row in audit.attribution}) > 1
    rows = [
        (
            f"{row.system} ({row.task})" if several else row.system,
            *(str(getattr(row, cause)) for cause in causes),
        )
        for row in audit.attribution
    ]
    return fitted("Where the answers went", columns, rows, width)
