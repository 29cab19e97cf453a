"""The calibration's figure: measured gains over forecasts, and whether probabilities are true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from loraprobe.defaults import MARGIN
from loraprobe.evaluation.statistics import wilson
from loraprobe_lab.calibration.page import Results

INK, SOFT, ACCENT = "#222222", "#9a9a9a", "#1f5fa8"
BINS = 8


def draw(results: Results, path: Path) -> None:
    """Writes an SVG of two panels; the same results give the same bytes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    style: Any = {"svg.hashsalt": "loraprobe", "font.size": 9, "axes.edgecolor": INK}
    with pyplot.rc_context(style):
        figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.9), layout="constrained")
        _gains(panels[0], results)
        _reliability(panels[1], results)
        for panel in panels:
            panel.spines[["top", "right"]].set_visible(False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
        pyplot.close(figure)


def _gains(panel: Any, results: Results) -> None:
    """Every case: its forecast and what it gained, a colour a scenario."""
    panel.plot([-1, 1], [-1, 1], color=SOFT, linewidth=0.8)
    for value in (0.0, MARGIN):
        panel.axhline(value, color=SOFT, linewidth=0.5, linestyle=":")
    for name in sorted({case.scenario for case in results.cases}):
        own = [case for case in results.cases if case.scenario == name]
        x, y = [case.forecast for case in own], [case.gain for case in own]
        panel.plot(x, y, "o", markersize=3, alpha=0.6, label=name)
    panel.set(xlabel="forecast gain", ylabel="measured gain", xlim=(-1, 1), ylim=(-1, 1))
    panel.set_title("Forecast and measured gain")
    panel.legend(frameon=False, loc="upper left", fontsize=8)


def _reliability(panel: Any, results: Results) -> None:
    """Share that gained over the mean probability, in bins of equal mass, on left-out scenarios."""
    found = results.shipped["scenarios"]
    labels = [case.label(MARGIN) for case in found.cases]
    decided = [i for i, label in enumerate(labels) if label is not None]
    p = found.probability[MARGIN][decided]
    y = np.array([labels[i] for i in decided], dtype=float)
    panel.plot([0, 1], [0, 1], color=SOFT, linewidth=0.8)
    for part in np.array_split(np.argsort(p, kind="stable"), BINS):
        at = float(p[part].mean())
        panel.plot([at, at], wilson(y[part], np.arange(len(part))), color=ACCENT, linewidth=1)
        panel.plot(at, y[part].mean(), "o", color=ACCENT, markersize=4)
    panel.set(xlabel="probability given", ylabel="share that gained")
    panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    panel.set_title("Left-out scenarios: are probabilities true?")
