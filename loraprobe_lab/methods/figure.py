"""The figure: everyone down, three panels across, a dot with two intervals each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from loraprobe_lab.methods.answers import ENOUGH
from loraprobe_lab.methods.pooling import Pooled
from loraprobe_lab.methods.table import MARGIN, Row, Table
from loraprobe_lab.reproduce.figure import as_svg, drawing

COLOURS = {"linear": "#333333", "merge": "#b3452c", "router": "#2f6f9f", "chain": "#5a8f4a"}
NAMES = {
    "linear": "constant gates",
    "merge": "merge into new weights",
    "router": "router",
    "chain": "chain of adapters",
}
Column = tuple[str, Callable[[Row], Pooled | None], float, tuple[float, float]]
COLUMNS: Sequence[Column] = (
    (
        "two hops, asked at once\ngain over base and singles",
        lambda row: row.two_hop.gain if row.two_hop else None,
        MARGIN,
        (-0.3, 1.02),
    ),
    (
        "keep both\nretention of the worse skill",
        lambda row: row.keep_both.worse if row.keep_both else None,
        ENOUGH,
        (-0.15, 1.05),
    ),
    (
        "new facts, step by step\ngain over base and singles",
        lambda row: row.step_by_step.gain if row.step_by_step else None,
        MARGIN,
        (-0.3, 1.02),
    ),
)


def methods_figure(table: Table) -> str:
    """SVG. The thick line is each figure's own 95 % interval, the thin one holds for all of its
    panel; the dashed line is the margin, or the retention that counts as keeping."""
    with drawing() as Figure:
        rows = table.rows
        figure = Figure(figsize=(10.5, 0.165 * len(rows) + 1.6))
        panels = figure.subplots(1, len(COLUMNS), sharey=True, squeeze=False)[0]
        for panel, (title, figure_of, line, span) in zip(panels, COLUMNS, strict=True):
            _panel(panel, rows, title, figure_of, line, span)
        panels[0].set_yticks(range(len(rows)), [row.entrant.label for row in rows], fontsize=7)
        panels[0].set_ylim(len(rows) - 0.4, -0.6)
        _legend(figure, rows)
        figure.tight_layout(rect=(0, 0.45 / figure.get_figheight(), 1, 1))
        return as_svg(figure)


def _panel(
    panel: Any,
    rows: Sequence[Row],
    title: str,
    figure_of: Callable[[Row], Pooled | None],
    line: float,
    span: tuple[float, float],
) -> None:
    panel.set_title(title, fontsize=9)
    panel.set_xlim(*span)
    panel.axvline(0, color="#bbbbbb", linewidth=0.8)
    panel.axvline(line, color="#555555", linewidth=0.8, linestyle="--")
    panel.grid(axis="y", color="#efefef", linewidth=0.5)
    panel.set_axisbelow(True)
    for y, row in enumerate(rows):
        found = figure_of(row)
        if found is None:
            continue
        colour = COLOURS[row.entrant.family]
        panel.plot(found.adjusted_ci95, [y, y], color=colour, linewidth=0.7, alpha=0.6)
        panel.plot(found.ci95, [y, y], color=colour, linewidth=2.0, alpha=0.7)
        panel.plot(found.value, y, "o", color=colour, markersize=3.2)


def _legend(figure: Any, rows: Sequence[Row]) -> None:
    from matplotlib.lines import Line2D

    families = dict.fromkeys(row.entrant.family for row in rows)
    handles: list[Any] = [
        Line2D([], [], marker="o", color=COLOURS[f], markersize=4, label=NAMES[f]) for f in families
    ]
    handles.append(Line2D([], [], color="#777777", linewidth=2, label="95 %"))
    handles.append(Line2D([], [], color="#777777", linewidth=0.7, label="95 % for the whole panel"))
    figure.legend(handles=handles, loc="lower center", ncols=6, frameon=False, fontsize=8)
