"""The page and the figure of the calibration, and how well gains that are known early tell others.

A *first round* of a composition on few items is drawn: its gain is the measured gain with a normal
error, whose size follows from the measured gain's own interval and number of items, rounded to
whole items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loraprobe.defaults import LIKELY_FROM, MARGIN
from loraprobe.evaluation.statistics import wilson
from loraprobe.sample_size import Z95
from loraprobe.verdict.calibration import SMALL
from loraprobe_lab.calibration.cases import Case
from loraprobe_lab.calibration.fit import MARGINS, Array
from loraprobe_lab.calibration.validation import (
    FEWEST_DECIDED,
    SHARES,
    Figures,
    LeftOut,
    Results,
    figures_of,
)
from loraprobe_lab.experiments.pages import BLUE, GREY, as_svg, drawing, render

BINS = 8  # of equal mass, in the figure of reliability


def calibration_figure(results: Results) -> str:
    """SVG with two panels: measured gains over forecasts, and whether probabilities are true.

    The probabilities are those of decided cases, by fits without their scenario.
    """
    found, scenarios = results.shipped["scenarios"], {case.scenario for case in results.cases}
    labels = [case.label(MARGIN) for case in found.cases]
    decided = [i for i, label in enumerate(labels) if label is not None]
    gained = np.array([labels[i] for i in decided], dtype=float)
    probability = found.probability[MARGIN][decided]
    with drawing() as Figure:
        figure = Figure(figsize=(9, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot([-1, 1], [-1, 1], color=GREY, linewidth=0.8)
        for value in (0.0, MARGIN):
            left.axhline(value, color=GREY, linewidth=0.5, linestyle=":")
        for name in sorted(scenarios):
            points = [(c.forecast, c.gain) for c in results.cases if c.scenario == name]
            left.plot(*zip(*points, strict=True), "o", markersize=3, alpha=0.6, label=name)
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


ROUNDS = (10, 20, 30, 60)
DRAWS = 200


@dataclass(frozen=True)
class Foresight:
    """How well gains that are known early tell the measured ones, on decided cases.

    auroc: within a scenario. right: the share on the measured gain's side of the margin. error: the
    mean distance to the measured gain.
    """

    what: str
    auroc: float
    right: float
    error: float


def foresight(cases: Sequence[Case], seed: int = 0) -> list[Foresight]:
    """The forecast, then rounds of ROUNDS items: means over DRAWS draws."""
    decided = [case for case in cases if case.label(MARGIN) is not None]
    gain = np.array([case.gain for case in decided])
    width = np.array([case.ci95[1] - case.ci95[0] for case in decided])
    spread = width / 2 / Z95 * np.sqrt([case.n for case in decided])  # of one item
    rng = np.random.default_rng(seed)
    forecast = np.array([case.forecast for case in decided])
    found = [_mean("forecast", decided, [forecast])]
    for n in ROUNDS:
        draws = gain + rng.standard_normal((DRAWS, len(gain))) * spread / np.sqrt(n)
        found.append(_mean(f"round of {n} items", decided, list(np.round(draws * n) / n)))
    return found


def _mean(what: str, cases: Sequence[Case], early: Sequence[Array]) -> Foresight:
    gained = np.array([case.label(MARGIN) == 1 for case in cases])
    gain = np.array([case.gain for case in cases])
    auroc = np.mean([figures_of(cases, own).auroc for own in early])
    right = np.mean([((own > MARGIN) == gained).mean() for own in early])
    error = np.mean([np.abs(own - gain).mean() for own in early])
    return Foresight(what, float(auroc), float(right), float(error))


def report(
    results: Results,
    document: Mapping[str, Any],
    command: str,
    skipped: Sequence[str],
    early: Sequence[Any],
) -> str:
    """The page in Markdown. early: rows of `foresight`."""
    return render(
        "calibration",
        results=results,
        document=document,
        command=command,
        skipped=skipped,
        early=early,
        cells=cells(results.cases),
        scenarios=by_scenario(results.shipped["scenarios"]),
        sets=len({case.set_key for case in results.cases}),
        undecided=sum(case.label(MARGIN) is None for case in results.cases),
        margins=MARGINS,
        margin=MARGIN,
        likely_from=LIKELY_FROM,
        shares=SHARES,
        small=SMALL,
        fewest_decided=FEWEST_DECIDED,
    )


def cells(cases: Sequence[Case]) -> list[tuple[str, str, int, int, int]]:
    """(scenario, method, successes, failures, undecided) at the default margin."""
    rows: list[tuple[str, str, int, int, int]] = []
    for key in sorted({(case.scenario, case.method) for case in cases}):
        own = [c.label(MARGIN) for c in cases if (c.scenario, c.method) == key]
        rows.append((*key, own.count(1), own.count(0), own.count(None)))
    return rows


def by_scenario(found: LeftOut) -> list[tuple[str, Figures, float, float]]:
    """(scenario, figures, mean probability, share of successes) of decided cases."""
    rows = []
    for name in sorted({case.scenario for case in found.cases}):
        chosen = [i for i, case in enumerate(found.cases) if case.scenario == name]
        decided = [i for i in chosen if found.cases[i].label(MARGIN) is not None]
        if decided:
            p = found.probability[MARGIN][decided]
            own = [found.cases[i] for i in decided]
            gained = sum(case.label(MARGIN) or 0 for case in own) / len(own)
            rows.append((name, figures_of(own, p), float(p.mean()), gained))
    return rows
