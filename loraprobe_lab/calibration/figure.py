"""The figure of the calibration: forecasts and probabilities against what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from loraprobe.evaluation.statistics import Array, wilson
from loraprobe_lab.experiments.pages import BLUE, GREY, as_svg, drawing

BINS = 8  # of equal mass, in the figure of reliability


def calibration_figure(
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    probability: Array,
    gained: Array,
    margin: float,
) -> str:
    """SVG with two panels: measured gains over forecasts, and whether probabilities are true.

    points: scenario -> forecast and measured gains. probability, gained [cases]: of the decided
    cases, by fits without their scenario, and whether they gained (1.0) or not.
    """
    with drawing() as Figure:
        figure = Figure(figsize=(9, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot([-1, 1], [-1, 1], color=GREY, linewidth=0.8)
        for value in (0.0, margin):
            left.axhline(value, color=GREY, linewidth=0.5, linestyle=":")
        for name, (forecasts, gains) in points.items():
            left.plot(forecasts, gains, "o", markersize=3, alpha=0.6, label=name)
        left.set(xlabel="forecast gain", ylabel="measured gain", xlim=(-1, 1), ylim=(-1, 1))
        left.set_title("Forecast and measured gain")
        left.legend(frameon=False, loc="upper left", fontsize=8)
        right.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        for part in np.array_split(np.argsort(probability, kind="stable"), BINS):
            at, y = float(probability[part].mean()), gained[part]
            right.plot([at, at], wilson(y, np.arange(len(y))), color=BLUE, linewidth=1)
            right.plot(at, y.mean(), "o", color=BLUE, markersize=4)
        right.set(xlabel="probability given", ylabel="share that gained")
        right.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        right.set_title("Left-out scenarios: are probabilities true?")
        return as_svg(figure)
