"""Tables with bars, for a terminal: the scores of all systems, and the gates of routers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from loraprobe.formatting import neighbours, number
from loraprobe.records import Audit, Score
from loraprobe.report.layout import GAP
from loraprobe.report.system_tables import PARTS, fewer, in_order, most_asked
from loraprobe.report.table import Column, Table, text

BAR = "▄"
KEEPS = "keeps"  # the smallest retention of a composition
LONGEST_BAR = 16
HEAT = "▁▂▃▄▅▆▇█"  # from no share to all of it
MOST_BARS = 40


def scores(audit: Audit, width: int) -> Table:
    """Systems down; across the forms of the question, or the tasks where there are several."""
    rows = [s for s in audit.evaluation.scores if s.part in PARTS]
    if not rows:
        return Table("", [], [])
    tasks = list(dict.fromkeys(s.task for s in rows))
    several = len(tasks) > 1
    forms = [form for form in PARTS if any(s.part == form for s in rows)]
    heads = [(task, form) for task in tasks for form in forms]
    titles = [_heading(task, form, several, len(forms)) for task, form in heads]
    found = {(s.system, s.task, s.part): s for s in rows}
    names = in_order(rows)
    longest = _bar_length(names, titles, rows, width - (len(KEEPS) + GAP) * several)
    lines = []
    for system in names:
        line = [system, *(_bar(found.get((system, *head)), longest) for head in heads)]
        lines.append([*line, _kept(system, rows)] if several else line)
    caption = f"Scores on {most_asked(rows)} questions" + ("" if several else f" of {tasks[0]}")
    caption += fewer(rows)
    columns = [replace(text(title), styles={f"{BAR}+": "cyan"}) for title in titles]
    return Table(caption, [text("system"), *columns, *[Column(KEEPS)][: int(several)]], lines)


def _heading(task: str, form: str, several: bool, forms: int) -> str:
    if not several:
        return PARTS[form]
    return task if forms == 1 else f"{task}, {PARTS[form]}"


def _bar_length(
    names: Sequence[str], titles: Sequence[str], rows: Sequence[Score], width: int
) -> int:
    """How long the bar of a full score is: what the figures leave, 0 for losses."""
    if any(s.metric == "answer_loss" for s in rows):
        return 0
    left = width - max(map(len, names))
    each = left // len(titles) - GAP - len("0.00 ")
    return max(0, min(LONGEST_BAR, each))


def _bar(score: Score | None, longest: int) -> str:
    if score is None:
        return "-"
    return f"{number(score.value)} {BAR * round(min(1.0, max(0.0, score.value)) * longest)}"


def _kept(system: str, rows: Sequence[Score]) -> str:
    """The smallest retention of a composition among the tasks."""
    kept = [s.retention for s in rows if s.system == system and s.retention is not None]
    composed = any(s.system == system and s.kind in ("merge", "router") for s in rows)
    return number(min(kept)) if kept and composed else "-"


def gates(audit: Audit) -> Table:
    """How each token router shared the prompts among adapters, a bar a layer."""
    columns = [
        *(text("router"), text("adapter"), text("by layer, first to last", drop=1)),
        *(Column("share"), Column("evenness")),
    ]
    lines = []
    for whole in (row for row in audit.gates if row.layer is None):
        of = [r for r in audit.gates if r.system == whole.system and r.layer is not None]
        for position, (adapter, share) in enumerate(whole.share.items()):
            name, evenness = ("", "") if position else (whole.system, f"{whole.entropy_share:.0%}")
            bars = _heat([row.share[adapter] for row in of])
            lines.append([name, adapter, bars, number(share), evenness])
    return Table("Gates of routers: shares on the prompts", columns, lines)


def _heat(shares: Sequence[float]) -> str:
    """One sign a layer; neighbours are averaged where there are more than MOST_BARS."""
    means = [sum(own) / len(own) for own in neighbours(shares, MOST_BARS)]
    return "".join(HEAT[min(int(mean * len(HEAT)), len(HEAT) - 1)] for mean in means)
