"""The figure of the table of methods: a row a system, a panel a question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loraprobe_lab.experiments.drawing import (
    BLUE,
    DARK,
    GREEN,
    RED,
    as_svg,
    drawing,
    grid_lines,
    legend,
)
from loraprobe_lab.experiments.methods.table import MethodsRow

FAMILIES = {
    "linear": (DARK, "constant gates"),
    "merge": (RED, "merge into new weights"),
    "router": (BLUE, "router"),
    "chain": (GREEN, "chain of adapters"),
}
METHOD_PANELS = (  # what the panel shows, the line that counts, and its span
    ("two hops, asked at once\ngain over base and singles", 0.05, (-0.3, 1.02)),
    ("keep both\nretention of the worse skill", 0.8, (-0.15, 1.05)),
    ("new facts, step by step\ngain over base and singles", 0.05, (-0.3, 1.02)),
)


def methods_figure(rows: Sequence[MethodsRow]) -> str:
    """SVG. The thick line is each figure's own 95 % interval, the thin one holds for all of its
    panel; the dashed line is the margin, or the retention that counts as keeping."""
    with drawing() as Figure:
        figure = Figure(figsize=(10.5, 0.165 * len(rows) + 1.6))
        panels = figure.subplots(1, len(METHOD_PANELS), sharey=True, squeeze=False)[0]
        for i, (title, line, span) in enumerate(METHOD_PANELS):
            panels[i].set_title(title, fontsize=9)
            panels[i].set_xlim(*span)
            panels[i].axvline(0, color="#bbbbbb", linewidth=0.8)
            panels[i].axvline(line, color="#555555", linewidth=0.8, linestyle="--")
            grid_lines(panels[i])
            for y, row in enumerate(rows):
                found, colour = row.figures[i], FAMILIES[row.system.family][0]
                if found is not None:
                    panels[i].plot(found.adjusted_ci95, [y, y], color=colour, lw=0.7, alpha=0.6)
                    panels[i].plot(found.ci95, [y, y], color=colour, lw=2.0, alpha=0.7)
                    panels[i].plot(found.value, y, "o", color=colour, markersize=3.2)
        panels[0].set_yticks(range(len(rows)), [row.system.label for row in rows], fontsize=7)
        panels[0].set_ylim(len(rows) - 0.4, -0.6)
        families = [FAMILIES[f] for f in dict.fromkeys(row.system.family for row in rows)]
        entries: list[dict[str, Any]] = [
            {"marker": "o", "color": colour, "markersize": 4, "label": label}
            for colour, label in families
        ]
        entries += [
            {"color": "#777777", "linewidth": width, "label": label}
            for width, label in ((2, "95 %"), (0.7, "95 % for the whole panel"))
        ]
        legend(figure, entries, 6)
        figure.tight_layout(rect=(0, 0.45 / figure.get_figheight(), 1, 1))
        return as_svg(figure)
