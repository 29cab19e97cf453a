"""The page that tells how a calibration was made and how good it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraprobe.defaults import LIKELY_FROM, MARGIN
from loraprobe_lab.calibration.cases import Case
from loraprobe_lab.calibration.fit import MARGINS, SHIPPED, VARIANTS, Variant
from loraprobe_lab.calibration.validation import (
    LEFT_OUT,
    SHARES,
    Figures,
    LeftOut,
    figures_of,
    interval,
    left_out,
    plain_logistic,
)
from loraprobe_lab.experiments.pages import render

# What users are told of where the accuracy was measured: strangers' models are larger.
WHERE = "scenarios left out of the fit, nearly all of them on small bases that the lab trained"


@dataclass(frozen=True)
class Results:
    """Everything that the page and the figure show.

    variants: variant -> what is left out -> predictions; plain: the same of the simplest rival.
    """

    cases: tuple[Case, ...]
    variants: Mapping[Variant, Mapping[str, LeftOut]]
    plain: Mapping[str, Figures]
    intervals: Mapping[str, tuple[tuple[float, float], tuple[float, float]]]

    @property
    def shipped(self) -> Mapping[str, LeftOut]:
        """The predictions of the variant that ships."""
        return self.variants[SHIPPED]

    def accuracy(self) -> dict[str, Any]:
        """What the calibration file tells of its accuracy."""
        found = self.shipped["scenarios"].figures()
        return {
            "where": WHERE,
            "cases": found.decided,
            "auroc": round(found.auroc, 3),
            "brier": round(found.brier, 3),
            "likely": found.likely,
            "wrong": round(found.wrong, 3) if found.likely else None,
        }


def measure(
    cases: Sequence[Case],
    draws: int,
    seed: int,
    variants: Sequence[Variant] | None = None,
) -> Results:
    """Leaves out bases, scenarios and architectures in turn, for every variant (None: all)."""
    variants = VARIANTS if variants is None else variants
    found = {v: {what: left_out(cases, key, v) for what, key in LEFT_OUT.items()} for v in variants}
    intervals = {
        what: (
            interval(own, lambda figures: figures.auroc, draws, seed),
            interval(own, lambda figures: figures.brier, draws, seed),
        )
        for what, own in found[SHIPPED].items()
    }
    plain = {what: plain_logistic(cases, key) for what, key in LEFT_OUT.items()}
    return Results(tuple(cases), found, plain, intervals)


def report(
    results: Results, document: Mapping[str, Any], command: str, skipped: Sequence[str]
) -> str:
    """The page in Markdown."""
    return render(
        "calibration",
        results=results,
        document=document,
        command=command,
        skipped=skipped,
        cells=cells(results.cases),
        scenarios=by_scenario(results.shipped["scenarios"]),
        sets=len({case.adapter_set for case in results.cases}),
        undecided=sum(case.label(MARGIN) is None for case in results.cases),
        margins=MARGINS,
        margin=MARGIN,
        likely_from=LIKELY_FROM,
        shares=SHARES,
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
