"""The scores of all systems as one table with bars."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from loraprobe.records import Audit, Score
from loraprobe.report.formatting import number
from loraprobe.report.layout import GAP, Column, Part, fitted, name
from loraprobe.report.tables import in_order

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
