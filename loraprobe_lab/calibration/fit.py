"""Fits the spread of measured gains; see `loraprobe.extensions.forecast`.

A measured gain g of a case is taken as t(g) = centre + noise, t(x) = asinh(x / UNIT), centre =
intercept + baseline times the case's best score of base and single adapters. The noise is logistic
with scale `spread`, widened by the measured gain's own standard error. Coefficients maximise the
likelihood of all measured gains, decided or not, so one fit serves every margin.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from loraprobe.defaults import MARGIN, PILOT_ITEMS
from loraprobe.evaluation.statistics import wilson
from loraprobe.extensions.forecast.probability import (
    FORMAT,
    LARGEST,
    LIKELY_FROM,
    SMALL,
    Coefficients,
)
from loraprobe.records.measurements import Z95
from loraprobe_lab.calibration.cases import (
    METHODS,
    AnsweredSet,
    Case,
    CaseError,
    MeasuredSet,
    sets_of,
)
from loraprobe_lab.experiments.pages import BLUE, GREY, as_svg, drawing, render

Array = NDArray[np.float64]
FEWEST = 20  # cases for a fit
MARGINS = (0.0, 0.02, 0.05, 0.1, 0.2)  # at which shares and errors are reported
UNIT = 0.05


def fit(cases: Sequence[Case]) -> Coefficients:
    """The coefficients of greatest likelihood. Raises CaseError for too few cases."""
    if len(cases) < FEWEST:
        raise CaseError(
            f"A fit needs at least {FEWEST} cases; there are {len(cases)}:", "add worlds."
        )

    columns = columns_of(cases)

    def fitted(theta: Array) -> Coefficients:
        return Coefficients(UNIT, float(theta[0]), float(theta[1]), float(np.exp(theta[2])))

    def loss(theta: Array) -> float:
        return -float(log_density(fitted(theta), *columns).mean())

    return fitted(optimize.minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-6}).x)


def columns_of(cases: Sequence[Case]) -> tuple[Array, Array, Array]:
    """Measured gains, their standard errors, and the best scores without a composition: [cases]."""
    rows = [(c.gain, (c.ci95[1] - c.ci95[0]) / 2 / Z95, c.baseline) for c in cases]
    gain, error, baseline = np.array(rows).T
    return gain, error, baseline


def log_density(given: Coefficients, gain: Array, error: Array, baseline: Array) -> Array:
    """The log-density of each measured gain, in gains: [cases]."""
    slope = UNIT**2 + gain**2  # 1 / (dt / dg)^2
    # The variance of a logistic distribution is pi^2 / 3 times its scale squared.
    scale = np.sqrt(given.spread**2 + 3 / np.pi**2 * error**2 / slope)
    centre = given.intercept + given.baseline * baseline
    found: Array = stats.logistic.logpdf(np.arcsinh(gain / UNIT), centre, scale) - np.log(slope) / 2
    return found


def document_of(
    fitted: Coefficients,
    cases: Sequence[Case],
    made_by: str,
    accuracy: Mapping[str, Any],
    sets: Sequence[AnsweredSet] = (),
) -> dict[str, Any]:
    """The calibration file.

    cases: those it was fitted on. sets: adapter sets with the answers of every default system.
    """
    return {
        "format": FORMAT,
        "made_by": made_by,
        "coefficients": {name: round(value, 4) for name, value in asdict(fitted).items()},
        "measured": {"cases": len(cases), "bases": len({case.base for case in cases})},
        "gained": _gained([case.gain for case in cases]),
        "accuracy": dict(accuracy),
        "classes": _classes(cases, sets),
    }


def _classes(cases: Sequence[Case], sets: Sequence[AnsweredSet]) -> list[dict[str, Any]]:
    """What the best composition of each adapter set gained, by kind of base and of task.

    Where a kind has answered sets, they alone count, because cases lack the router per prompt.
    """
    found: dict[tuple[str, int, int, str], dict[tuple[str, str], tuple[str, float]]] = {}
    for one in sets:
        kind = (one.base_kind, *astuple(one.kind))
        found.setdefault(kind, {})[one.set_key] = one.base, one.best_gain
    answered = set(found)
    for case in cases:
        kind = (case.base_kind, case.tasks, case.hops, case.metric)
        if kind not in answered:
            best = found.setdefault(kind, {}).get(case.set_key, (case.base, -1.0))
            found[kind][case.set_key] = case.base, max(best[1], case.gain)
    return [
        {
            "base": base,
            "tasks": tasks,
            "hops": hops,
            "metric": metric,
            "sets": len(own),
            "bases": len({base for base, _ in own.values()}),
            "gained": _gained([gain for _, gain in own.values()]),
        }
        for (base, tasks, hops, metric), own in sorted(found.items())
    ]


def _gained(gains: Sequence[float]) -> list[list[float]]:
    """[margin, share of the gains above it] for the margins that are reported."""
    return [[m, round(sum(gain > m for gain in gains) / len(gains), 4)] for m in MARGINS]


# Measures the probabilities on left-out bases, kinds and architectures; renders the page.
#
# For one task it is predicted whether some composition of an adapter set gains more than the
# margin; for several tasks, whether the composition also keeps every skill. A set is decided if the
# interval of one composition's gain lies above the margin, or all lie below it; Brier score and
# AUROC are of decided sets. The AUROC is computed *within* each kind of sets and averaged over the
# kinds that have both outcomes: a pooled AUROC would also reward telling kinds apart, which needs
# no tool. Its null exchanges the outcomes of the sets of a kind.


EXCHANGES = 200  # of outcomes, for the null
FEWEST_DECIDED = 15  # sets on one kind of base; half a 95 % interval of a share is then 0.25


@dataclass(frozen=True)
class Figures:
    """Measures of probabilities of sets; NaN if undefined.

    decided, gained: how many sets take part, and how many of them gained. silent: the share of
    draws without a probability, on all sets; they are left out of the rest. null: the 95th
    percentile of the AUROC if outcomes are exchanged. reference: the Brier score of the share that
    gained. likely: how many sets have a probability of at least LIKELY_FROM, the mean over draws;
    wrong: the share of failures in them; called: their share of the successes.
    """

    decided: int
    gained: int
    silent: float
    auroc: float
    null: float
    brier: float
    reference: float
    likely: float
    wrong: float
    called: float


def figures(labels: Sequence[int | None], p: Array, kinds: Sequence[str] | None = None) -> Figures:
    """The figures of probabilities p [draws, sets]; NaN for a draw without one.

    labels: 1 for a set that gained, 0 for a failure, None for one that takes no part. The AUROC is
    computed within each of `kinds` and averaged over those that have both outcomes; without kinds
    it is that of all sets. Its null exchanges the outcomes of the sets of a kind.
    """
    nan = float("nan")
    silent = float(np.isnan(p).mean()) if p.size else nan
    kept = [i for i, label in enumerate(labels) if label is not None]
    y = np.array([labels[i] for i in kept], dtype=float)
    own = np.array([kinds[i] if kinds else "" for i in kept])
    p = p[:, kept]
    likely, rng = p >= LIKELY_FROM, np.random.default_rng(0)
    called, gained = float(likely.sum()), likely[:, y == 1]
    null = [_auroc(_exchanged(y, own, rng), p[:1], own) for _ in range(EXCHANGES)]
    return Figures(
        decided=len(y),
        gained=int(y.sum()),
        silent=silent,
        auroc=_auroc(y, p, own),
        null=float(np.nanquantile(null, 0.95)) if np.isfinite(null).any() else nan,
        brier=float(np.nanmean((p - y) ** 2)) if np.isfinite(p).any() else nan,
        reference=float(y.mean() * (1 - y.mean())) if len(y) else nan,
        likely=called / len(p),
        wrong=float(likely[:, y == 0].sum() / called) if called else nan,
        called=float(gained.mean()) if gained.size else nan,
    )


def _auroc(y: Array, p: Array, kinds: Any) -> float:
    """The mean over draws and over kinds with both outcomes; NaN without such a kind."""
    found = []
    for kind in np.unique(kinds):
        drawn = []
        for draw in p[:, kinds == kind]:
            ones, zeros = (draw[(y[kinds == kind] == k) & ~np.isnan(draw)] for k in (1, 0))
            if len(ones) and len(zeros):
                above = (ones[:, None] > zeros) + 0.5 * (ones[:, None] == zeros)
                drawn.append(float(above.mean()))
        if drawn:
            found.append(float(np.mean(drawn)))
    return float(np.mean(found)) if found else float("nan")


def _exchanged(y: Array, kinds: Any, rng: np.random.Generator) -> Array:
    mixed = y.copy()
    for kind in np.unique(kinds):
        mixed[kinds == kind] = rng.permutation(y[kinds == kind])
    return mixed


def recorded(found: Mapping[str, Figures], where: Mapping[str, str]) -> dict[str, Any]:
    """What `calibration.json` holds of each kind of base with enough decided sets.

    An AUROC that exchanged outcomes reach too tells nothing, so it is None.
    """
    return {
        kind: {
            "where": where[kind],
            "sets": row.decided,
            "items": PILOT_ITEMS,
            "auroc": round(row.auroc, 3) if row.auroc > row.null else None,
            "brier": round(row.brier, 3),
            "likely": round(row.likely),
            "wrong": round(row.wrong, 3) if row.likely else None,
        }
        for kind, row in found.items()
        if row.decided >= FEWEST_DECIDED
    }


Key = Callable[[Case], str]
LEFT_OUT: Mapping[str, Key] = {
    "bases": lambda case: case.base,
    "kinds": lambda case: case.scenario,
    "architectures": lambda case: case.base_architecture or case.architecture,
}
DRAWS = 20  # first rounds of each set
BINS = 8  # of equal mass, in the figure of reliability
UNKNOWN = 1e6  # the standard error of a gain that nobody measured
# What is known of a set: a first round of so many items, 0 for the best score alone.
KNOWN = (0, 10, PILOT_ITEMS, 60)
# Shown to users, because their models differ from those on which the accuracy was measured.
WHERE = {
    "small": "kinds of adapter sets left out of the fit, on small bases that the lab trained",
    "natural": "kinds of adapter sets left out of the fit, on SmolLM2-135M-Instruct",
}


def left_out(
    sets: Sequence[MeasuredSet], key: Key, items: int = PILOT_ITEMS, margin: float = MARGIN
) -> Array:
    """P(gain > margin) of each set by a fit without its group: [draws, sets].

    items: of the first round, see KNOWN. Raises CaseError for a single group.
    """
    groups = [key(one.cases[0]) for one in sets]
    if len(set(groups)) < 2:
        raise CaseError(f"All cases are of {groups[0] if groups else 'nothing'}:", "add worlds.")
    rng = np.random.default_rng(0)
    found = np.zeros((DRAWS if items else 1, len(sets)))
    fits = {}
    for left in dict.fromkeys(groups):
        rest = [one for one, group in zip(sets, groups, strict=True) if group != left]
        fits[left] = fit([case for one in rest for case in one.cases])
    for i, (one, group) in enumerate(zip(sets, groups, strict=True)):
        for draw in found:
            known = one.first_round(items, rng) if items else (one.cases[0], 0.0, UNKNOWN)
            case, gain, error = known
            draw[i] = fits[group].exceeds(margin, case.baseline, gain, error)
    return found


def figures_of(sets: Sequence[MeasuredSet], p: Array, margin: float = MARGIN) -> Figures:
    """The figures of probabilities [draws, sets] that some composition gains more.

    Sets with several tasks take no part.
    """
    outcomes = [one.outcome for one in sets]
    labels = [case.label(margin) if case.tasks == 1 else None for case in outcomes]
    return figures(labels, p, [case.scenario for case in outcomes])


@dataclass(frozen=True)
class Results:
    """The contents of the page and the figure.

    figures: items of a first round (KNOWN) -> what is left out -> figures. shipped: what is left
    out -> the probabilities of what ships, [draws, sets].
    """

    cases: tuple[Case, ...]
    sets: tuple[MeasuredSet, ...]
    figures: Mapping[int, Mapping[str, Figures]]
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
        """The figure, as SVG: whether the probabilities on left-out kinds are true."""
        labels = [
            one.outcome.label(MARGIN) if one.cases[0].tasks == 1 else None for one in self.sets
        ]
        decided = [i for i, label in enumerate(labels) if label is not None]
        p = self.shipped["kinds"][:, decided]
        gained = np.array([labels[i] for i in decided] * len(p), dtype=float)
        return reliability_figure(p.ravel(), gained)


def measure(cases: Sequence[Case]) -> Results:
    """Leaves out bases, kinds and architectures in turn, for everything that may be known."""
    sets = sets_of(cases)
    found = {
        items: {what: left_out(sets, key, items) for what, key in LEFT_OUT.items()}
        for items in KNOWN
    }
    told = {
        items: {what: figures_of(sets, p) for what, p in row.items()}
        for items, row in found.items()
    }
    return Results(tuple(cases), tuple(sets), told, found[PILOT_ITEMS])


def report(
    results: Results,
    document: Mapping[str, Any],
    command: str,
    several: Mapping[str, Any],
) -> str:
    """The page in Markdown. several: kind of base -> sets with several tasks, and their figures."""
    cells: list[tuple[Any, ...]] = []  # kind, method, successes, failures, undecided
    for key in sorted({(case.scenario, case.method) for case in results.cases}):
        own = [c.label(MARGIN) for c in results.cases if (c.scenario, c.method) == key]
        cells.append((*key, own.count(1), own.count(0), own.count(None)))
    return render(
        "calibration",
        results=results,
        document=document,
        command=command,
        several=several,
        methods=METHODS,
        cells=cells,
        undecided=sum(one.outcome.label(MARGIN) is None for one in results.sets),
        margins=[
            (m, figures_of(results.sets, left_out(results.sets, LEFT_OUT["kinds"], margin=m), m))
            for m in MARGINS
        ],
        margin=MARGIN,
        likely_from=LIKELY_FROM,
        items=PILOT_ITEMS,
        small=SMALL,
        natural=LARGEST,
        fewest_decided=FEWEST_DECIDED,
    )


def reliability_figure(probability: Array, gained: Array) -> str:
    """SVG: the share that gained over the probability given, in bins of equal mass.

    probability, gained [cases]: of the decided cases, and whether they gained (1.0) or not.
    """
    with drawing() as Figure:
        figure = Figure(figsize=(4.5, 3.9), layout="constrained")
        panel = figure.subplots()
        panel.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
        for part in np.array_split(np.argsort(probability, kind="stable"), BINS):
            at, y = float(probability[part].mean()), gained[part]
            panel.plot([at, at], wilson(y, np.arange(len(y))), color=BLUE, linewidth=1)
            panel.plot(at, y.mean(), "o", color=BLUE, markersize=4)
        panel.set(xlabel="probability given", ylabel="share that gained")
        panel.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        panel.set_title("Left-out kinds: are probabilities true?")
        return as_svg(figure)


# Adapter sets with several tasks: the errors of the probability that every skill is kept.
#
# The sets are stored with the answers of all systems, so a first round is drawn from the answers
# themselves: some items of each task, judged by the code of a verdict.


SETS = "several.jsonl.gz"
DEFAULT = ", by default"  # ends the name of the row of sets as they are asked by default
SET_DRAWS = 10  # first rounds of each set
SET_WHERE = {
    "small": "left-out small bases that the lab trained",
    "natural": "SmolLM2-135M-Instruct, left out of the fit",
}


def measure_sets(
    sets: Sequence[AnsweredSet], cases: Sequence[Case]
) -> dict[str, tuple[list[AnsweredSet], Figures]]:
    """The sets on each kind of base, with their figures: of both forms of a set, and of each.

    A set has two forms, because with the router per prompt few sets fail: with all systems that
    are asked by default, and with METHODS alone.
    """
    found = {}
    for kind in SET_WHERE:
        own = [one for one in sets if one.base_kind == kind]
        if own:
            forms = [*own, *(one.under(METHODS) for one in own)]
            rng, n = np.random.default_rng(0), len(own)
            bases = dict.fromkeys(one.base for one in own)
            fits = {base: fit([case for case in cases if case.base != base]) for base in bases}
            drawn = [
                [one.first_round(PILOT_ITEMS, rng, fits[one.base]) for _ in range(SET_DRAWS)]
                for one in forms
            ]
            outcomes, p = [one.outcome for one in forms], np.array(drawn).T
            found[kind] = own, figures(outcomes, p)
            found[kind + DEFAULT] = own, figures(outcomes[:n], p[:, :n])
            names = ", ".join(METHODS)
            found[f"{kind}, {names} alone"] = own, figures(outcomes[n:], p[:, n:])
    return found


def set_errors(rows: Mapping[str, tuple[list[AnsweredSet], Figures]]) -> dict[str, Any]:
    """What `calibration.json` holds: the figures of both forms, and how many sets are clear."""
    both = {
        kind: replace(rows[kind][1], decided=rows[kind + DEFAULT][1].decided)
        for kind in SET_WHERE
        if kind in rows
    }
    return recorded(both, SET_WHERE)
