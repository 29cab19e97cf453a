"""The figure of the matrix: scores of compositions by name set, template and size."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from loraprobe_lab.experiments.drawing import (
    BLUE,
    DARK,
    GREY,
    RED,
    as_svg,
    drawing,
    grid_lines,
    legend,
)
from loraprobe_lab.experiments.matrix import Matrix, MatrixCell

SYSTEMS = ("uniform", "sum", "arrow", "chain")
LIBRARIES = {2: (RED, "library of the two hops"), 3: (BLUE, "and the target adapter")}


def matrix_figure(matrix: Matrix, cells: Sequence[MatrixCell], title: str) -> str:
    """SVG: exact match of uniform, sum, arrow and chain in every panel of the matrix.

    Dots of one method stand in the order of the sizes; the grey bar is the span, over the sizes,
    of the best of base and the two hop adapters, the dashed line the joint adapter's mean.
    """
    with drawing() as Figure:
        groups, templates = matrix.groups, matrix.templates
        figure = Figure(figsize=(4.1 * len(templates), 2.3 * len(groups) + 0.9))
        axes = figure.subplots(len(groups), len(templates), sharex=True, sharey=True, squeeze=False)
        for (row, group), (column, template) in product(enumerate(groups), enumerate(templates)):
            panel = axes[row][column]
            here = [c for c in cells if (c.group, c.template) == (group, template)]
            _matrix_panel(panel, here, matrix.sizes, matrix.margin)
            if row == 0:
                asked = "step by step" if here and here[0].form == "steps" else "asked at once"
                panel.set_title(f"{template} ({asked})", fontsize=10)
            if column == 0:
                panel.set_ylabel(f"{group}\nexact match")
        dot = {"marker": "o", "color": DARK}
        rows: list[dict[str, Any]] = [
            {**dot, "linestyle": "-", "color": colour, "markerfacecolor": "white", "label": label}
            for colour, label in LIBRARIES.values()
        ]
        rows += [
            {**dot, "linestyle": "", "label": "filled: gains on base and singles"},
            {
                "patch": True,
                "color": GREY,
                "alpha": 0.35,
                "label": "best of base and hop adapters, over the sizes",
            },
            {"linestyle": "--", "color": DARK, "label": "joint adapter, mean"},
        ]
        legend(figure, rows, 5)
        order = f"dots of one system from left to right: {', '.join(matrix.sizes)}"
        figure.text(0.5, 0.045, order, ha="center", fontsize=8, color="#555555")
        figure.suptitle(title, y=1.0, fontsize=11)
        figure.tight_layout(rect=(0, 0.06, 1, 1))
        return as_svg(figure)


def _matrix_panel(
    panel: Any, cells: Sequence[MatrixCell], sizes: Sequence[str], margin: float
) -> None:
    panel.set(xlim=(-0.5, len(SYSTEMS) - 0.5), ylim=(-0.03, 1.03))
    panel.set_xticks(range(len(SYSTEMS)), SYSTEMS)
    grid_lines(panel)
    singles = [c for c in cells if c.role == "baseline" and c.library == 2]
    best = [max((c.score for c in singles if c.size == s), default=0.0) for s in sizes]
    panel.axhspan(min(best), max(best) + 0.004, color=GREY, alpha=0.35, linewidth=0)
    joint = [c.score for c in cells if c.role == "reference"]
    if joint:
        panel.axhline(sum(joint) / len(joint), color=DARK, linestyle="--", linewidth=0.9)
    slots = 2 * len(sizes) + 1
    for cell in (c for c in cells if c.role == "composition"):
        slot = sizes.index(cell.size) + (0 if cell.library == 2 else len(sizes) + 1)
        x = SYSTEMS.index(cell.system) + 0.8 * ((slot + 0.5) / slots - 0.5)
        colour = LIBRARIES[cell.library][0]
        panel.plot([x, x], cell.score_ci95, color=colour, linewidth=1.1, alpha=0.6)
        face = colour if cell.gains(margin) else "white"
        panel.plot(x, cell.score, "o", markersize=4.2, color=colour, markerfacecolor=face)
