"""Figures of the matrix, the methods and the map of success, drawn with matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from loraprobe_lab.experiments.drawing import BLUE, DARK, GREEN, GREY, RED, as_svg, drawing

if TYPE_CHECKING:
    from loraprobe_lab.experiments.matrix import Matrix, MatrixCell
    from loraprobe_lab.experiments.methods.table import MethodsRow
    from loraprobe_lab.experiments.success_map import PointGain


def _rows_of_lines(panel: Any) -> None:
    """Faint horizontal lines behind everything."""
    panel.grid(axis="y", color="#e9e9e9", linewidth=0.6)
    panel.set_axisbelow(True)


def _legend(figure: Any, rows: Sequence[Mapping[str, Any]], columns: int, **more: Any) -> None:
    """A legend below the panels; each row is a line, or a patch where it says `patch`."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Patch(**{k: v for k, v in row.items() if k != "patch"})
        if "patch" in row
        else Line2D([], [], **row)
        for row in rows
    ]
    figure.legend(
        handles=handles, loc="lower center", ncols=columns, frameon=False, fontsize=8, **more
    )


# the matrix: name sets down, templates across, a dot with interval for each size

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
        _legend(figure, rows, 5)
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
    _rows_of_lines(panel)
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


# the success map: four panels, one for each axis that was varied

MAP_PANELS = {
    "weights": ("weights: unequal", ""),
    "familiarity": ("second hop, over equal weights", "weight of each adapter"),
    "invented": ("made-up couples in the skill adapter's data", "share of made-up couples"),
    "norms": ("norm of one adapter", "factor on one adapter's update"),
}


def map_figure(found: Sequence[PointGain], bases: int) -> str:
    """SVG of the map: gain over the best of base and singles, step by step."""
    with drawing() as Figure:
        figure = Figure(figsize=(11.5, 8.2))
        panels = dict(zip(MAP_PANELS, figure.subplots(2, 2).flat, strict=True))
        for name, panel in panels.items():
            rows = [one for one in found if one.point.panel == name]
            (_heat if name == "weights" else _series)(panel, rows)
            title, label = MAP_PANELS[name]
            panel.set_title(title, fontsize=10)
            if label:
                panel.set(xlabel=label, ylabel="gain, step by step")
        panels["norms"].set_xscale("log", base=2)
        ticks = sorted({one.point.x for one in found if one.point.panel == "norms"})
        panels["norms"].set_xticks(ticks, [f"{x:g}" for x in ticks])
        figure.suptitle(
            "Where success lives: new facts in one adapter x worked steps in another "
            f"({bases} bases; gain over the best of base and singles; 95 % intervals)",
            fontsize=11,
        )
        figure.tight_layout(rect=(0, 0, 1, 0.98))
        return as_svg(figure)


def _heat(panel: Any, rows: Sequence[PointGain]) -> None:
    """Gain over both weights; framed where the interval lies above the margin."""
    import numpy as np
    from matplotlib.patches import Rectangle

    gates: list[Any] = sorted({one.point.x for one in rows})
    values = np.full((len(gates), len(gates)), np.nan)
    cells = {(gates.index(one.point.y), gates.index(one.point.x)): one for one in rows}
    for place, one in cells.items():
        values[place] = one.gain
    image = panel.imshow(values, origin="lower", cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    for (y, x), one in cells.items():
        colour = "white" if abs(one.gain) > 0.6 else "#222222"
        panel.text(x, y, f"{one.gain:+.2f}", ha="center", va="center", fontsize=8, color=colour)
        if one.succeeds:
            corner, side = (x - 0.46, y - 0.46), 0.92
            frame = Rectangle(corner, side, side, fill=False, edgecolor="#111111", lw=1.4)
            panel.add_patch(frame)
    panel.set_xticks(range(len(gates)), [f"{g:g}" for g in gates])
    panel.set_yticks(range(len(gates)), [f"{g:g}" for g in gates])
    panel.set(xlabel="weight of the facts adapter", ylabel="weight of the skill adapter")
    panel.figure.colorbar(image, ax=panel, label="gain (framed: above the margin)")


def _series(panel: Any, rows: Sequence[PointGain]) -> None:
    """A line for each series with its intervals; every base as a small dot."""
    panel.axhline(0.05, color="#777777", linewidth=0.8, linestyle=":")  # the margin
    panel.axhline(0, color="#bbbbbb", linewidth=0.8)
    series = dict.fromkeys(one.point.series for one in rows)
    for colour, name in zip((BLUE, RED, GREEN, "#7a5aa0"), series, strict=False):
        own = sorted((r for r in rows if r.point.series == name), key=lambda r: r.point.x)
        x = [r.point.x for r in own]
        panel.plot(x, [r.gain for r in own], "o-", color=colour, markersize=4, label=name)
        low, high = zip(*(r.ci95 for r in own), strict=True)
        panel.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)
        for r in own:
            dots = [r.point.x] * len(r.each)
            panel.plot(dots, list(r.each.values()), ".", color=colour, markersize=3, alpha=0.5)
    _rows_of_lines(panel)
    panel.legend(frameon=False, fontsize=8)


# the table of methods: every system down, a dot with two intervals in each of three panels

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
            _rows_of_lines(panels[i])
            for y, row in enumerate(rows):
                found, colour = row.figures[i], FAMILIES[row.system.family][0]
                if found is not None:
                    panels[i].plot(found.adjusted_ci95, [y, y], color=colour, lw=0.7, alpha=0.6)
                    panels[i].plot(found.ci95, [y, y], color=colour, lw=2.0, alpha=0.7)
                    panels[i].plot(found.value, y, "o", color=colour, markersize=3.2)
        panels[0].set_yticks(range(len(rows)), [row.system.label for row in rows], fontsize=7)
        panels[0].set_ylim(len(rows) - 0.4, -0.6)
        families = [FAMILIES[f] for f in dict.fromkeys(row.system.family for row in rows)]
        legend: list[dict[str, Any]] = [
            {"marker": "o", "color": colour, "markersize": 4, "label": label}
            for colour, label in families
        ]
        legend += [
            {"color": "#777777", "linewidth": width, "label": label}
            for width, label in ((2, "95 %"), (0.7, "95 % for the whole panel"))
        ]
        _legend(figure, legend, 6)
        figure.tight_layout(rect=(0, 0.45 / figure.get_figheight(), 1, 1))
        return as_svg(figure)
