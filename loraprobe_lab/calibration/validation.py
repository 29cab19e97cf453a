"""Measures the probabilities on left-out bases, kinds and architectures; renders the page.

What is predicted is whether some composition of an adapter set gains more than the margin, on one
task: with several tasks a verdict has no probability. A set is decided if the interval of one
composition's gain lies above the margin, or all lie below it; Brier score and AUROC are of decided
sets. The AUROC is computed *within* each kind of sets and averaged over the kinds that have both
outcomes: a pooled AUROC would also reward telling kinds apart, which needs no tool. Its null
exchanges the outcomes of the sets of a kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loraprobe.defaults import LIKELY_FROM, MARGIN, PILOT_ITEMS
from loraprobe.evaluation.statistics import wilson
from loraprobe.verdict.calibration import SMALL
from loraprobe_lab.calibration.cases import METHODS, Case, CaseError
from loraprobe_lab.calibration.figures import FEWEST_DECIDED, Figures, figures, recorded
from loraprobe_lab.calibration.fit import (
    MARGINS,
    SHIPPED,
    WITH_FORECAST,
    Array,
    Variant,
    fit,
)
from loraprobe_lab.calibration.sets import MeasuredSet, sets_of
from loraprobe_lab.experiments.pages import BLUE, GREY, as_svg, drawing, render

Key = Callable[[Case], str]
LEFT_OUT: Mapping[str, Key] = {
    "bases": lambda case: case.base,
    "kinds": lambda case: case.scenario,
    "architectures": lambda case: case.base_architecture or case.architecture,
}
DRAWS = 20  # first rounds of each set
BINS = 8  # of equal mass, in the figure of reliability
UNKNOWN = 1e6  # the standard error of a gain that nobody measured
# Shown to users, because their models differ from those on which the accuracy was measured.
WHERE = {
    "small": "kinds of adapter sets left out of the fit, on small bases that the lab trained",
    "natural": "kinds of adapter sets left out of the fit, on SmolLM2-135M-Instruct",
}


@dataclass(frozen=True)
class Known:
    """What is known of a set: the columns of the fit, and the items of a first round, or None."""

    variant: Variant
    items: int | None

    def __str__(self) -> str:
        told = f"a first round of {self.items} items" if self.items else ""
        if "forecast" in self.variant:
            told = f"{told} and the forecast" if told else "the forecast"
        return told or "the best score alone"


FIRST_ROUND = Known(SHIPPED, PILOT_ITEMS)  # what ships
KNOWN = (
    Known(SHIPPED, None),
    Known(WITH_FORECAST, None),
    Known(SHIPPED, 10),
    FIRST_ROUND,
    Known(SHIPPED, 60),
    Known(WITH_FORECAST, PILOT_ITEMS),
)


def left_out(
    sets: Sequence[MeasuredSet], key: Key, known: Known = FIRST_ROUND, margin: float = MARGIN
) -> Array:
    """P(gain > margin) of each set by a fit without its group: [draws, sets].

    Raises CaseError for a single group.
    """
    groups = [key(one.cases[0]) for one in sets]
    if len(set(groups)) < 2:
        raise CaseError(f"All cases are of {groups[0] if groups else 'nothing'}: add worlds.")
    rng = np.random.default_rng(0)
    found = np.zeros((DRAWS if known.items else 1, len(sets)))
    fits = {}
    for left in dict.fromkeys(groups):
        rest = [one for one, group in zip(sets, groups, strict=True) if group != left]
        fits[left] = fit([case for one in rest for case in one.cases], known.variant)
    for i, (one, group) in enumerate(zip(sets, groups, strict=True)):
        for draw in found:
            if known.items:
                case, gain, error = one.first_round(known.items, rng)
            else:
                case = max(one.cases, key=lambda c: c.forecast or 0.0)
                gain, error = 0.0, UNKNOWN
            draw[i] = fits[group].given(case).exceeds(margin, case.baseline, gain, error)
    return found


def figures_of(sets: Sequence[MeasuredSet], p: Array, margin: float = MARGIN) -> Figures:
    """The figures of probabilities [draws, sets] that some composition gains more.

    Sets with several tasks take no part.
    """
    outcomes = [one.outcome for one in sets]
    labels = [case.label(margin) if case.tasks == 1 else None for case in outcomes]
    return figures(labels, p, [case.scenario for case in outcomes])


def known_of(cases: Sequence[Case]) -> list[Known]:
    """What may be known of the sets; nothing with a forecast unless every case has one."""
    forecast = all(case.forecast is not None for case in cases)
    return [known for known in KNOWN if forecast or known.variant == SHIPPED]


@dataclass(frozen=True)
class Results:
    """The contents of the page and the figure.

    figures: what is known -> what is left out -> figures. shipped: what is left out -> the
    probabilities of what ships, [draws, sets].
    """

    cases: tuple[Case, ...]
    sets: tuple[MeasuredSet, ...]
    figures: Mapping[Known, Mapping[str, Figures]]
    shipped: Mapping[str, Array]

    def of(self, what: str, name: str, value: str) -> Figures:
        """The figures of what ships on left-out sets; name, value: an attribute of their cases."""
        chosen = [i for i, one in enumerate(self.sets) if getattr(one.cases[0], name) == value]
        return figures_of([self.sets[i] for i in chosen], self.shipped[what][:, chosen])

    @property
    def kinds(self) -> list[tuple[str, Figures]]:
        """(kind, figures) of what ships."""
        names = sorted({case.scenario for case in self.cases})
        return [(name, self.of("kinds", "scenario", name)) for name in names]

    @property
    def bases(self) -> list[tuple[str, str, Figures]]:
        """(kind of base, what is left out, figures) of what ships."""
        return [
            (kind, what, self.of(what, "base_kind", kind))
            for kind in WHERE
            for what in ("bases", "kinds")
        ]

    def accuracy(self) -> dict[str, Any]:
        """Kind of base -> the accuracy as recorded in the file, of kinds with enough sets."""
        found = {kind: row for kind, what, row in self.bases if what == "kinds"}
        return recorded(found, WHERE)

    def figure(self) -> str:
        """The figure, as SVG."""
        points = {
            name: (
                [case.forecast for case in own if case.forecast is not None],
                [case.gain for case in own if case.forecast is not None],
            )
            for name, _ in self.kinds
            if (own := [case for case in self.cases if case.scenario == name])
        }
        labels = [
            one.outcome.label(MARGIN) if one.cases[0].tasks == 1 else None for one in self.sets
        ]
        decided = [i for i, label in enumerate(labels) if label is not None]
        p = self.shipped["kinds"][:, decided]
        gained = np.array([labels[i] for i in decided] * len(p), dtype=float)
        return calibration_figure(points, p.ravel(), gained, MARGIN)


def measure(cases: Sequence[Case]) -> Results:
    """Leaves out bases, kinds and architectures in turn, for everything that may be known."""
    sets = sets_of(cases)
    found = {
        known: {what: left_out(sets, key, known) for what, key in LEFT_OUT.items()}
        for known in known_of(cases)
    }
    told = {
        known: {what: figures_of(sets, p) for what, p in row.items()}
        for known, row in found.items()
    }
    return Results(tuple(cases), tuple(sets), told, found[FIRST_ROUND])


def report(
    results: Results,
    document: Mapping[str, Any],
    command: str,
    skipped: Sequence[str],
    several: Mapping[str, Any],
) -> str:
    """The page in Markdown. several: kind of base -> sets with several tasks, and their figures."""
    return render(
        "calibration",
        results=results,
        document=document,
        command=command,
        skipped=skipped,
        several=several,
        methods=METHODS,
        cells=cells(results.cases),
        agree=signs_agree([case for case in results.cases if case.label(MARGIN) is not None]),
        undecided=sum(one.outcome.label(MARGIN) is None for one in results.sets),
        margins=[
            (m, figures_of(results.sets, left_out(results.sets, LEFT_OUT["kinds"], margin=m), m))
            for m in MARGINS
        ],
        margin=MARGIN,
        likely_from=LIKELY_FROM,
        items=PILOT_ITEMS,
        small=SMALL,
        fewest_decided=FEWEST_DECIDED,
        shipped=FIRST_ROUND,
    )


def signs_agree(cases: Sequence[Case]) -> float:
    """The share of compositions whose forecast and gain lie on one side of the margin.

    NaN where none has a forecast.
    """
    told = [(c.forecast, c.gain) for c in cases if c.forecast is not None]
    agree = [(forecast > MARGIN) == (gain > MARGIN) for forecast, gain in told]
    return float(np.mean(agree)) if agree else float("nan")


def cells(cases: Sequence[Case]) -> list[tuple[str, str, int, int, int]]:
    """(kind, method, successes, failures, undecided) at the default margin."""
    rows: list[tuple[str, str, int, int, int]] = []
    for key in sorted({(case.scenario, case.method) for case in cases}):
        own = [c.label(MARGIN) for c in cases if (c.scenario, c.method) == key]
        rows.append((*key, own.count(1), own.count(0), own.count(None)))
    return rows


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
