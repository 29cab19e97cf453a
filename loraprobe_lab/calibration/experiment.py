"""All that is measured about a calibration: held-out bases, scenarios, architectures, transfer.

Every function fits on the training side alone, features included. Undecided cases are in no figure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from loraprobe_lab.calibration import splits
from loraprobe_lab.calibration.baselines import predictors
from loraprobe_lab.calibration.cases import NATURAL, Case, CaseError, decided, two_class
from loraprobe_lab.calibration.measures import (
    Figure,
    Scored,
    auroc_within,
    brier,
    difference,
    draws,
    summary,
)
from loraprobe_lab.calibration.ranked import Ranked, fit_ranked
from loraprobe_lab.calibration.splits import Split
from loraprobe_lab.calibration.terms import Array, Mask

RANGE_METRICS = ("brier", "auroc_pooled")  # compared inside and outside the calibrated range
Opened = Callable[[str, Sequence[Case]], None]  # told what held-out set is looked at


@dataclass(frozen=True)
class Part:
    """One held-out set: its figures over all cases, and over those inside the calibrated range."""

    name: str
    cases: int
    bases: int
    figures: Mapping[str, Figure]
    inside: Mapping[str, Figure]
    outside: Mapping[str, Figure]


@dataclass(frozen=True)
class Against:
    """One baseline on the headline's cases, and what the model is better by (paired)."""

    name: str
    auroc: Figure
    brier: Figure
    auroc_gain: Figure
    brier_gain: Figure  # positive: the model's error is smaller


@dataclass(frozen=True)
class Results:
    """Everything that a report shows."""

    fitted: Ranked
    headline: Part
    scored: Scored
    baselines: tuple[Against, ...]
    others: Mapping[str, Scored]
    parts: tuple[Part, ...]
    left_out: tuple[str, ...] = field(default=())


def measure(cases: Sequence[Case], opened: Opened, *, count: int = 1000, seed: int = 0) -> Results:
    """Fits on the training bases and measures on everything that is held out.

    `opened` is told every held-out set before it is looked at. Raises CaseError where there are
    too few training cases, or no held-out base.
    """
    split = splits.held_out_bases(cases)
    if not decided(split.test):
        raise CaseError(
            "No base is held out, so nothing can be measured: at least three bases of one kind and "
            "architecture are needed."
        )
    two = two_class(splits.trained(cases))
    fitted = fit_ranked(split.train)
    opened(split.name, split.test)
    scored = score_split(fitted, split, two)
    others, against = _baselines(split, scored, two, count, seed)
    parts, left_out = _parts(cases, fitted, two, opened, count, seed)
    return Results(
        fitted, _part(split.name, scored, count, seed), scored, against, others, parts, left_out
    )


def score_split(fitted: Ranked, split: Split, two: set[tuple[str, str]]) -> Scored:
    """A fitted model on the decided cases of a split's held-out side."""
    own = decided(split.test)
    p, inside = fitted.predict(own), fitted.range.inside(own)
    return scored_of(own, p, two, inside, (p >= fitted.threshold) & inside)


def scored_of(
    cases: Sequence[Case],
    p: Array,
    two: set[tuple[str, str]],
    inside: Mask | None = None,
    likely: Mask | None = None,
) -> Scored:
    """Decided cases with predictions; clusters are bases, adapter sets where all share one base."""
    one_base = len({case.base for case in cases}) < 2
    names = [str(case.adapter_set) if one_base else case.base for case in cases]
    return Scored(
        y=np.array([float(case.label or 0) for case in cases]),
        p=p,
        scenario=np.array([case.scenario for case in cases], dtype=str),
        cluster=np.array(names, dtype=str),
        headline=np.array([case.cell in two for case in cases], dtype=bool),
        supported=np.ones(len(cases), bool) if inside is None else inside,
        likely=np.zeros(len(cases), bool) if likely is None else likely,
    )


def _baselines(
    split: Split, scored: Scored, two: set[tuple[str, str]], count: int, seed: int
) -> tuple[dict[str, Scored], tuple[Against, ...]]:
    own = decided(split.test)
    samples = draws(scored.cluster, count, seed)
    others, rows = {}, []
    for name, predict in predictors().items():
        other = scored_of(own, predict(split.train, own), two)
        others[name] = other
        alone = summary(other, count, seed, ("auroc_within", "brier"))
        rows.append(
            Against(
                name,
                auroc=alone["auroc_within"],
                brier=alone["brier"],
                auroc_gain=difference(scored, other, auroc_within, samples),
                brier_gain=difference(other, scored, brier, samples),
            )
        )
    return others, tuple(rows)


def _parts(
    cases: Sequence[Case], fitted: Ranked, two: set[tuple[str, str]], opened: Opened,
    count: int, seed: int,
) -> tuple[tuple[Part, ...], tuple[str, ...]]:  # fmt: skip
    """The held-out sets beside the headline's; what could not be measured, and why."""
    own = splits.trained(cases)
    wanted: list[tuple[str, list[Split]]] = [
        ("every base held out once", splits.every_base_once(cases))
    ]
    for scenario in sorted({case.scenario for case in own}):
        wanted.append((f"scenario {scenario}", splits.held_out_scenario(cases, scenario)))
    architectures = sorted({case.architecture for case in own})
    for architecture in architectures if len(architectures) > 1 else ():
        split = splits.held_out_architecture(cases, architecture)
        wanted.append((f"architecture {architecture}", [split]))
    parts: list[Part] = []
    left_out: list[str] = []
    for name, own_splits in wanted:
        opened(name, [case for split in own_splits for case in split.test])
        found = _scored(own_splits, two, left_out)
        if found is not None:
            parts.append(_part(name, found, count, seed))
    natural = splits.natural_transfer(cases)
    if decided(natural.test):
        opened("natural bases", natural.test)
        two_natural = two_class([case for case in cases if case.kind == NATURAL])
        scored = score_split(fitted, natural, two_natural)
        parts.append(_part("natural bases", scored, count, seed))
    return tuple(parts), tuple(left_out)


def _scored(
    own_splits: Sequence[Split], two: set[tuple[str, str]], left_out: list[str]
) -> Scored | None:
    """The held-out sides of several splits together, each by its own fit."""
    found = []
    for split in own_splits:
        if not decided(split.test):
            continue
        try:
            found.append(score_split(fit_ranked(split.train), split, two))
        except CaseError as error:
            left_out.append(f"{split.name}: {error}")
    return Scored.joined(found) if found else None


def _part(name: str, scored: Scored, count: int, seed: int) -> Part:
    return Part(
        name,
        cases=len(scored),
        bases=len(np.unique(scored.cluster)),
        figures=summary(scored, count, seed),
        inside=summary(scored.take(scored.supported), count, seed, RANGE_METRICS),
        outside=summary(scored.take(~scored.supported), count, seed, RANGE_METRICS),
    )
