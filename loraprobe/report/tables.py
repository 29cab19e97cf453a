"""The audit's tables for a terminal, one function each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from loraprobe.records import Audit, Coverage, Measurement, Score
from loraprobe.report.formatting import clean, count, interval, number, spread

SEVERITY_STYLES = {"error": "bold red", "warning": "yellow", "note": "dim"}


def table(title: str, *columns: str, left: int = 1) -> Table:
    """A plain table: the first `left` columns text, the rest figures."""
    made = Table(title=_inert(title), title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for position, column in enumerate(columns):
        justify: Literal["left", "right"] = "left" if position < left else "right"
        made.add_column(_inert(column), justify=justify, overflow="fold")
    return made


def _row(made: Table, *cells: str | Text) -> None:
    """Adds a row. Cells hold strangers' names, so text is never read as markup."""
    made.add_row(*(cell if isinstance(cell, Text) else _inert(cell) for cell in cells))


def _inert(text: str) -> str:
    return escape(clean(text))


def adapters(audit: Audit) -> Table:
    """What each adapter is."""
    made = table("Adapters", "name", "base model", "rank", "modules", "parameters", "norm", left=2)
    for row in audit.adapters:
        low, high = row.rank["min"], row.rank["max"]
        rank = str(low) if low == high else f"{low}–{high}"
        _row(
            made,
            row.name,
            row.base_model or "-",
            rank,
            str(row.modules),
            count(row.parameters),
            number(row.norm),
        )
    return made


def issues(audit: Audit) -> Table | None:
    """What compatibility found, errors first."""
    found = audit.compatibility.issues
    if not found:
        return None
    made = table("Findings", "severity", "code", "what it means, and the cure", left=3)
    order = list(SEVERITY_STYLES)
    for issue in sorted(found, key=lambda i: order.index(i.severity)):
        text = f"{issue.message} {issue.cure}".strip()
        style = SEVERITY_STYLES[issue.severity]
        _row(made, Text(issue.severity, style), issue.code, text)
    return made


def diagnostics(audit: Audit, width: int = 80) -> Iterator[Table]:
    """Figures of single adapters, then of every pair, then module by module if asked for."""
    whole = [m for m in audit.diagnostics if m.module is None]
    singles = [m for m in whole if len(m.adapters) == 1]
    pairs = [m for m in whole if len(m.adapters) > 1]
    modules = [m for m in audit.diagnostics if m.module is not None]
    title = "Adapters and their merge" if audit.command == "merge" else "Single adapters"
    yield from _grid(title, singles, lambda m: clean(m.adapters[0]), "adapter", width)
    yield from _grid(
        "Between adapters", pairs, lambda m: clean(" × ".join(m.adapters)), "adapters", width
    )
    yield from _grid(
        "Module by module",
        modules,
        lambda m: f"{clean(m.module)} ({clean(' × '.join(m.adapters))})",
        "module",
        width,
    )


def _grid(
    title: str,
    rows: Sequence[Measurement],
    key: Callable[[Measurement], str],
    heading: str,
    width: int,
) -> Iterator[Table]:
    """Diagnostics down, adapters (or pairs) across where few; else the other way round.

    As many tables as it takes for each to fit the width with its figures in one piece.
    """
    cells = {(key(m), _label(m)): _figure(m) for m in rows}
    lines = list(dict.fromkeys(line for line, _ in cells))
    heads = list(dict.fromkeys(head for _, head in cells))
    if len(lines) <= 3:
        lines, heads, heading = heads, lines, ""
        cells = {(line, head): text for (head, line), text in cells.items()}
    for position, widths in enumerate(_fitting(lines, heads, cells, width)):
        made = table(title if position == 0 else f"{title} (continued)", heading, *widths)
        made.columns[0].no_wrap = max(map(len, lines)) <= width // 2
        for column, wide in zip(made.columns[1:], widths.values(), strict=True):
            column.width = wide
        for line in lines:
            _row(made, line, *(cells.get((line, head), "-") for head in widths))
        yield made


SPACE = 3  # what rich puts between two columns of a table


def _fitting(
    lines: Sequence[str], heads: Sequence[str], cells: Mapping[tuple[str, str], str], width: int
) -> Iterator[dict[str, int]]:
    """Heads and widths of the columns that fit side by side, one at least.

    A column needs its widest figure and its head's longest word; what is left lets heads stay on
    one line.
    """
    left = width - min(max(map(len, lines), default=0), width // 2) - 2 * SPACE
    group: dict[str, int] = {}
    for head in heads:
        figures = max(len(cells.get((line, head), "-")) for line in lines)
        need = min(left - SPACE, max(figures, *map(len, head.split(" "))))
        if group and sum(group.values()) + need + SPACE * (len(group) + 1) > left:
            yield _spread_out(group, left)
            group = {}
        group[head] = need
    if group:
        yield _spread_out(group, left)


def _spread_out(group: Mapping[str, int], left: int) -> dict[str, int]:
    """The same columns, wider where there is room for the whole head."""
    spare = left - sum(group.values()) - SPACE * len(group)
    widths = {}
    for head, need in group.items():
        more = max(0, min(spare, len(head) - need))
        widths[head] = need + more
        spare -= more
    return widths


AGAINST_CHANCE = ("subspace_overlap", "shared_initialisation")  # read as multiples of chance


def _label(m: Measurement) -> str:
    label = m.name.replace("_", " ")
    if m.side:
        label += f" ({m.side})"
    if m.rank is not None:
        label += f" at rank {m.rank}"
    return label


def _figure(m: Measurement) -> str:
    text = number(m.value, 3)
    if m.name in AGAINST_CHANCE and m.chance and m.value is not None:
        text += f" ({m.value / m.chance:.1f}× chance)"
    elif m.stderr:
        text += f" ± {number(m.stderr, 3)}"
    return text


def coverage(audit: Audit) -> Iterable[Table]:
    """What the base and each adapter alone know."""
    for task in dict.fromkeys(c.task for c in audit.coverage):
        rows = [c for c in audit.coverage if c.task == task]
        headings = ("probe", "of", "part", "value", "guess", "95 %", "n")
        made = table(f"Coverage: {task}", *headings, left=3)
        for row in rows:
            part = f"hop {row.hop}" if row.hop else "question"
            guess = number(row.baseline) if row.baseline is not None else ""
            _row(
                made,
                row.name.replace("_", " "),
                _of(row),
                part,
                number(row.value),
                guess,
                interval(row.ci95),
                str(row.n),
            )
        yield made


def _of(row: Coverage) -> str:
    return " → ".join(row.adapters) or "base"


def evaluation(audit: Audit) -> Iterable[Table]:
    """Systems down, parts across, a table a task."""
    for task in dict.fromkeys(s.task for s in audit.evaluation):
        rows = [s for s in audit.evaluation if s.task == task]
        parts = sorted({s.part for s in rows}, key=_part_order)
        retained = any(s.retention is not None for s in rows)
        n = max(s.n for s in rows)
        metric = min(rows, key=lambda s: _part_order(s.part)).metric  # that of the question
        title = f"Evaluation: {task} ({n} items, {metric})"
        headings = [PARTS.get(p, p.replace("hop", "hop ")) for p in parts]
        if retained:
            headings.append("retention")
        made = table(title, "system", *headings)
        for group in GROUPS:
            systems = dict.fromkeys(s.system for s in rows if s.kind in group)
            for system in systems:
                _row(made, *_system_row(system, parts, rows, retained))
            if systems:
                made.add_section()
        yield made


def _part_order(part: str) -> tuple[int, str]:
    """The question, then its steps, then the worked form."""
    return {"question": 0, "steps": 2}.get(part, 1), part


PARTS = {"question": "question", "steps": "step by step"}
GROUPS = (("base", "adapter"), ("merge", "router"), ("chain",), ("control",))


def _system_row(
    system: str, parts: Sequence[str], rows: Sequence[Score], retained: bool
) -> list[str]:
    scores = {s.part: s for s in rows if s.system == system}
    cells = [system]
    for part in parts:
        score = scores.get(part)
        if score is None:
            cells.append("-")
        elif part.startswith("hop"):  # a step on the way: its interval stays in the JSON
            cells.append(number(score.value))
        else:
            cells.append(f"{number(score.value)} {interval(score.ci95)}")
    if retained:
        cells.append(number(next((s.retention for s in scores.values()), None)))
    return cells


def attribution(audit: Audit) -> Table | None:
    """Where the answers of each composition went."""
    if not audit.attribution:
        return None
    causes = ("solved", "step_by_step", "unknown", "interference", "not_composed")
    made = table("Where the answers went", "system", *(c.replace("_", " ") for c in causes))
    several = len({row.task for row in audit.attribution}) > 1
    for row in audit.attribution:
        name = f"{row.system} ({row.task})" if several else row.system
        _row(made, name, *(str(getattr(row, cause)) for cause in causes))
    return made


HEAT = "▁▂▃▄▅▆▇█"  # from no share to all of it
MOST_BARS = 40


def gates(audit: Audit) -> Table | None:
    """How each token router shared the prompts among adapters, a bar a layer."""
    if not audit.gates:
        return None
    headings = ("system", "adapter", "by layer, first to last", "share", "entropy in nats")
    made = table("Gates of routers: shares on the prompts", *headings, left=3)
    for whole in (row for row in audit.gates if row.layer is None):
        of = [r for r in audit.gates if r.system == whole.system and r.layer is not None]
        entropy = f"{number(whole.entropy)} ({whole.entropy_share:.0%} of ln k)"
        for position, (adapter, share) in enumerate(whole.share.items()):
            first = position == 0
            bars = _bars([row.share[adapter] for row in of])
            _row(
                made,
                whole.system if first else "",
                adapter,
                bars,
                number(share),
                entropy if first else "",
            )
    return made


def _bars(shares: Sequence[float]) -> str:
    """One sign a layer; neighbours are averaged where there are more than MOST_BARS."""
    count = min(len(shares), MOST_BARS)
    bars = ""
    for i in range(count):
        own = shares[i * len(shares) // count : (i + 1) * len(shares) // count]
        bars += HEAT[min(int(sum(own) / len(own) * len(HEAT)), len(HEAT) - 1)]
    return bars


def layers(audit: Audit) -> Table | None:
    """Adapters layer by layer, what repeats in every layer as one line."""
    if not audit.layers:
        return None
    headings = ("module", "kind", "modules", "rank", "in", "out", "scaling", "norm")
    made = table("Layers", *headings, left=2)
    for row in audit.layers:
        norm = spread(row.norm) if row.norm else "-"
        _row(
            made,
            row.pattern,
            row.kind,
            str(row.modules),
            spread(row.rank),
            spread(row.in_features),
            spread(row.out_features),
            spread(row.scaling),
            norm,
        )
    return made
