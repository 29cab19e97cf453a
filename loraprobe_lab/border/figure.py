"""The map: four panels, one for each axis that was varied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loraprobe_lab.border.measure import MARGIN, Reading
from loraprobe_lab.border.points import GATES
from loraprobe_lab.reproduce.figure import as_svg, drawing

COLOURS = ("#2f6f9f", "#b3452c", "#4f8a4b", "#7a5aa0")
TITLES = {
    "weights": "weights: unequal",
    "familiarity": "second hop, over equal weights",
    "invented": "made-up couples in the skill adapter's data",
    "norms": "norm of one adapter",
}
LABELS = {
    "familiarity": "weight of each adapter",
    "invented": "share of made-up couples",
    "norms": "factor on one adapter's update",
}


def map_figure(found: Sequence[Reading], bases: int) -> str:
    """SVG of the map: gain over the best of base and singles, step by step."""
    with drawing() as Figure:
        figure = Figure(figsize=(11.5, 8.2))
        panels = dict(zip(TITLES, figure.subplots(2, 2).flat, strict=True))
        for name, panel in panels.items():
            rows = [reading for reading in found if reading.point.panel == name]
            (_heat if name == "weights" else _lines)(panel, rows)
            panel.set_title(TITLES[name], fontsize=10)
            if name in LABELS:
                panel.set_xlabel(LABELS[name])
                panel.set_ylabel("gain, step by step")
        panels["norms"].set_xscale("log", base=2)
        ticks = sorted({r.point.x for r in found if r.point.panel == "norms"})
        panels["norms"].set_xticks(ticks, [f"{x:g}" for x in ticks])
        figure.suptitle(
            "Where success lives: new facts in one adapter x worked steps in another "
            f"({bases} bases; gain over the best of base and singles; 95 % intervals)",
            fontsize=11,
        )
        figure.tight_layout(rect=(0, 0, 1, 0.98))
        return as_svg(figure)


def _heat(panel: Any, rows: Sequence[Reading]) -> None:
    """Gain over both weights; framed where the interval lies above the margin."""
    import numpy as np

    values = np.full((len(GATES), len(GATES)), np.nan)
    for row in rows:
        assert row.point.y is not None
        i, j = GATES.index(row.point.y), GATES.index(row.point.x)
        values[i, j] = row.gain
    image = panel.imshow(values, origin="lower", cmap="RdBu", vmin=-1, vmax=1, aspect="auto")
    for row in rows:
        assert row.point.y is not None
        i, j = GATES.index(row.point.y), GATES.index(row.point.x)
        dark = abs(row.gain) > 0.6
        panel.text(
            j, i, f"{row.gain:+.2f}", ha="center", va="center", fontsize=8,
            color="white" if dark else "#222222",
        )  # fmt: skip
        if row.succeeds:
            panel.add_patch(_frame(j, i))
    panel.set_xticks(range(len(GATES)), [f"{g:g}" for g in GATES])
    panel.set_yticks(range(len(GATES)), [f"{g:g}" for g in GATES])
    panel.set_xlabel("weight of the facts adapter")
    panel.set_ylabel("weight of the skill adapter")
    panel.figure.colorbar(image, ax=panel, label="gain (framed: above the margin)")


def _frame(x: float, y: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor="#111111", lw=1.4)


def _lines(panel: Any, rows: Sequence[Reading]) -> None:
    """A line for each series with its intervals; every base as a small dot."""
    panel.axhline(MARGIN, color="#777777", linewidth=0.8, linestyle=":")
    panel.axhline(0, color="#bbbbbb", linewidth=0.8)
    series = list(dict.fromkeys(row.point.series for row in rows))
    for colour, name in zip(COLOURS, series, strict=False):
        own = sorted((r for r in rows if r.point.series == name), key=lambda r: r.point.x)
        x = [r.point.x for r in own]
        panel.plot(x, [r.gain for r in own], "o-", color=colour, markersize=4, label=name)
        panel.fill_between(
            x, [r.ci95[0] for r in own], [r.ci95[1] for r in own], color=colour, alpha=0.15, lw=0
        )
        for r in own:
            panel.plot([r.point.x] * len(r.each), list(r.each.values()), ".", color=colour,
                       markersize=3, alpha=0.5)  # fmt: skip
    panel.grid(axis="y", color="#eeeeee", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.legend(frameon=False, fontsize=8)
