"""The figure of the calibration: forecasts against measured gains, and reliability."""

from __future__ import annotations

from typing import Any

import numpy as np

from loraprobe.evaluation.statistics import wilson
from loraprobe_lab.calibration.validation import Results
from loraprobe_lab.experiments.drawing import BLUE, GREY, as_svg, drawing
from loraprobe_lab.experiments.rule.exact import MARGIN

BINS = 8  # of equal mass, in the figure of reliability


def calibration_figure(results: Results) -> str:
    """SVG with two panels: measured gains over forecasts, and whether probabilities are true."""
    with drawing() as Figure:
        figure = Figure(figsize=(9, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        _forecasts(left, results)
        _reliability(right, results)
        return as_svg(figure)


def _forecasts(panel: Any, results: Results) -> None:
    """Every case: its forecast and what it gained, a colour a scenario."""
    panel.plot([-1, 1], [-1, 1], color=GREY, linewidth=0.8)
    for value in (0.0, MARGIN):
        panel.axhline(value, color=GREY, linewidth=0.5, linestyle=":")
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
    panel.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    for part in np.array_split(np.argsort(p, kind="stable"), BINS):
        at = float(p[part].mean())
        panel.plot([at, at], wilson(y[part], np.arange(len(part))), color=BLUE, linewidth=1)
        panel.plot(at, y[part].mean(), "o", color=BLUE, markersize=4)
    panel.set(xlabel="probability given", ylabel="share that gained")
    panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    panel.set_title("Left-out scenarios: are probabilities true?")
