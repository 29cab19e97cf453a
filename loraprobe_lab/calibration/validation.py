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
from scipy.stats import rankdata

from loraprobe.defaults import LIKELY_FROM, MARGIN, PILOT_ITEMS
from loraprobe.verdict.calibration import SMALL
from loraprobe_lab.calibration.accuracy import FEWEST_DECIDED, Figures, recorded
from loraprobe_lab.calibration.cases import Case, CaseError
from loraprobe_lab.calibration.figure import calibration_figure
from loraprobe_lab.calibration.fit import (
    MARGINS,
    SHIPPED,
    WITH_FORECAST,
    Array,
    Variant,
    fit,
)
from loraprobe_lab.calibration.sets import MeasuredSet, sets_of
from loraprobe_lab.experiments.pages import render

Key = Callable[[Case], str]
LEFT_OUT: Mapping[str, Key] = {
    "bases": lambda case: case.base,
    "kinds": lambda case: case.scenario,
    "architectures": lambda case: case.base_architecture or case.architecture,
}
DRAWS = 20  # first rounds of each set
EXCHANGES = 200  # of outcomes, for the null
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
                case, gain, error = max(one.cases, key=lambda c: c.forecast), 0.0, UNKNOWN
            draw[i] = fits[group].given(case).exceeds(margin, case.baseline, gain, error)
    return found


def figures_of(sets: Sequence[MeasuredSet], p: Array, margin: float = MARGIN) -> Figures:
    """The figures of probabilities [draws, sets] that some composition gains more.

    Sets with several tasks take no part.
    """
    outcomes = [one.outcome for one in sets]
    labels = [case.label(margin) for case in outcomes]
    one_task = [case.tasks == 1 for case in outcomes]
    kept = [i for i, label in enumerate(labels) if label is not None and one_task[i]]
    y = np.array([labels[i] for i in kept], dtype=float)
    kinds = np.array([outcomes[i].scenario for i in kept])
    p = p[:, kept]
    likely = p >= LIKELY_FROM
    called, gained = float(likely.sum()), likely[:, y == 1]
    rng = np.random.default_rng(0)
    null = [_auroc(_exchanged(y, kinds, rng), p[:1], kinds) for _ in range(EXCHANGES)]
    nan = float("nan")
    return Figures(
        decided=len(y),
        auroc=_auroc(y, p, kinds),
        null=float(np.nanquantile(null, 0.95)) if np.isfinite(null).any() else nan,
        brier=float(np.mean((p - y) ** 2)) if len(y) else nan,
        reference=float(y.mean() * (1 - y.mean())) if len(y) else nan,
        likely=called / len(p),
        wrong=float(likely[:, y == 0].sum() / called) if called else nan,
        called=float(gained.mean()) if gained.size else nan,
    )


def _auroc(y: Array, p: Array, kinds: Any) -> float:
    """The mean over draws and over kinds with both outcomes; NaN without such a kind."""
    own = [kinds == kind for kind in np.unique(kinds)]
    found = []
    for kind in own:
        ones = int(y[kind].sum())
        zeros = int(kind.sum()) - ones
        if ones and zeros:
            ranks = rankdata(p[:, kind], axis=1)[:, y[kind] == 1].sum(1)
            found.append(np.mean(ranks - ones * (ones + 1) / 2) / (ones * zeros))
    return float(np.mean(found)) if found else float("nan")


def _exchanged(y: Array, kinds: Any, rng: np.random.Generator) -> Array:
    mixed = y.copy()
    for kind in np.unique(kinds):
        mixed[kinds == kind] = rng.permutation(y[kinds == kind])
    return mixed


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
                [case.forecast for case in self.cases if case.scenario == name],
                [case.gain for case in self.cases if case.scenario == name],
            )
            for name, _ in self.kinds
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
        for known in KNOWN
    }
    figures = {
        known: {what: figures_of(sets, p) for what, p in row.items()}
        for known, row in found.items()
    }
    return Results(tuple(cases), tuple(sets), figures, found[FIRST_ROUND])


def report(
    results: Results,
    document: Mapping[str, Any],
    command: str,
    skipped: Sequence[str],
    several: Mapping[str, Any],
) -> str:
    """The page in Markdown. several: kind of base -> the figures of sets with several tasks."""
    return render(
        "calibration",
        results=results,
        document=document,
        command=command,
        skipped=skipped,
        several=several,
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
    """The share of compositions whose forecast and gain lie on one side of the margin."""
    return float(np.mean([(case.forecast > MARGIN) == (case.gain > MARGIN) for case in cases]))


def cells(cases: Sequence[Case]) -> list[tuple[str, str, int, int, int]]:
    """(kind, method, successes, failures, undecided) at the default margin."""
    rows: list[tuple[str, str, int, int, int]] = []
    for key in sorted({(case.scenario, case.method) for case in cases}):
        own = [c.label(MARGIN) for c in cases if (c.scenario, c.method) == key]
        rows.append((*key, own.count(1), own.count(0), own.count(None)))
    return rows
