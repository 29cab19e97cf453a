"""Warnings of geometry: what in the weights may spoil a composition. They never decide.

Thresholds are plain arithmetic on what the number does to a sum of two updates, not fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from loraprobe.records import Measurement, Reason
from loraprobe.verdict import formatting as fmt


@dataclass(frozen=True)
class GeometryRule:
    """One warning: from which whole-adapter value of a diagnostic it is given, and its text."""

    diagnostic: str
    code: str
    threshold: float
    beyond: Callable[[float, float], bool]
    text: str
    source: str


def _above(value: float, threshold: float) -> bool:
    return value > threshold


def _below(value: float, threshold: float) -> bool:
    return value < threshold


def _uneven(value: float, threshold: float) -> bool:
    return value > threshold or 0 <= value < 1 / threshold


RULES = (
    GeometryRule(
        "norm_ratio",
        "norm-disparity",
        3.0,
        _uneven,
        "the norms of {who} differ by a factor of {value}, so the smaller one hardly shows in "
        "a merge; --balance norm makes them equal",
        "at a ratio of 3 the smaller update holds a tenth of the energy of an orthogonal sum; "
        "norm disparity hurts (arXiv 2508.01148)",
    ),
    GeometryRule(
        "cosine",
        "opposed-updates",
        -0.25,
        _below,
        "the updates of {who} point against each other (cosine {value}), so a merge cancels "
        "part of both",
        "at -0.25 a quarter of the energy of two equal updates cancels",
    ),
    GeometryRule(
        "cosine",
        "nearly-equal-updates",
        0.95,
        _above,
        "the updates of {who} are nearly the same (cosine {value}), so there is little to compose",
        "at 0.95 two equal updates differ by a third of their norm",
    ),
    GeometryRule(
        "relative_norm",
        "large-update",
        0.5,
        _above,
        "the update of {who} is {value} times as large as the weights it changes",
        "at 0.5 the update is half as large as the weight; extreme norms are a red flag "
        "(arXiv 2601.06672)",
    ),
    GeometryRule(
        "cross_terms",
        "factor-averaging-differs",
        0.1,
        _above,
        "averaging A and B of {who} apart, as peft's `linear` does, misses the average of the "
        "updates by {value} of its norm; merge with `uniform`, which is exact",
        "a tenth of the norm; exact merging has an error of 0",
    ),
    GeometryRule(
        "shared_initialisation",
        "shared-initialisation",
        0.5,
        _above,
        "the A of {who} look alike row by row (mean cosine {value}), as if from one seed, so "
        "overlap on the input side is initialisation and not skill",
        "a mean cosine of 0.5; rows of independent seeds have one near 0",
    ),
)


def about_geometry(measurements: Iterable[Measurement], balanced: bool = False) -> list[Reason]:
    """One reason a rule, about the adapters where the value lies furthest beyond its threshold.

    Norms that were made equal before composing (`balanced`) give no warning.
    """
    whole = [m for m in measurements if m.module is None and m.value is not None]
    reasons = []
    for rule in RULES:
        if balanced and rule.code == "norm-disparity":
            continue
        beyond = [
            m
            for m in whole
            if m.name == rule.diagnostic and rule.beyond(float(m.value or 0.0), rule.threshold)
        ]
        if not beyond:
            continue
        worst = max(beyond, key=lambda m: (_distance(rule, float(m.value or 0.0)), m.adapters))
        value = float(worst.value or 0.0)
        shown = 1 / value if rule.beyond is _uneven and 0 < value < 1 else value
        text = rule.text.format(who=fmt.listing(worst.adapters), value=fmt.number(shown))
        more = f" ({len(beyond)} such cases)" if len(beyond) > 1 else ""
        reasons.append(
            Reason(
                rule.code,
                text[0].upper() + text[1:] + more + ".",
                value,
                rule.threshold,
                rule.source,
                "info",
            )
        )
    return reasons


def _distance(rule: GeometryRule, value: float) -> float:
    if rule.beyond is _uneven and value < 1:
        return 1 / value if value > 0 else float("inf")
    return -value if rule.beyond is _below else value
