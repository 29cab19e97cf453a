"""The figure of the success map: a panel for each axis that was varied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loraprobe_lab.experiments.drawing import BLUE, GREEN, RED, as_svg, drawing, grid_lines
from loraprobe_lab.experiments.map_points import PointGain

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
    grid_lines(panel)
    panel.legend(frameon=False, fontsize=8)
