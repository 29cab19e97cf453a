"""Warnings about properties of the weights that may harm a composition. They decide nothing.

The thresholds follow from what the figure does to a sum of two updates; none is fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from loraprobe.defaults import (
    CROSS_TERMS,
    EQUAL_COSINE,
    LARGE_UPDATE,
    NORM_RATIO,
    OPPOSED_COSINE,
    SHARED_INITIALISATION,
)
from loraprobe.formatting import count, listing
from loraprobe.records import Measurement, Reason
from loraprobe.verdict import formatting as fmt


@dataclass(frozen=True)
class GeometryRule:
    """One warning: the diagnostic, the threshold of its whole-adapter value, and the text."""

    diagnostic: str
    code: str
    threshold: float
    beyond: Callable[[float, float], bool]
    text: str
    source: str

    def shown(self, value: float) -> str:
        """The value as it is printed: a cosine near 1 with three decimals, a factor with one."""
        if self.beyond is _uneven:
            return f"{value:,.1f}"
        return f"{value:.3f}" if self.code == "nearly-equal-updates" else fmt.number(value)


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
        NORM_RATIO,
        _uneven,
        "the norms of {who} differ {value} times, so the smaller hardly shows in a merge: try "
        "--balance norm",
        "at a ratio of 3 the smaller update holds a tenth of the energy of an orthogonal sum; "
        "norm disparity hurts (arXiv 2508.01148)",
    ),
    GeometryRule(
        "cosine",
        "opposed-updates",
        OPPOSED_COSINE,
        _below,
        "{who} point against each other (cosine {value}), so a merge cancels part of both: "
        "route instead",
        "at -0.25 a quarter of the energy of two equal updates cancels",
    ),
    GeometryRule(
        "cosine",
        "nearly-equal-updates",
        EQUAL_COSINE,
        _above,
        "{who} are nearly the same (cosine {value}), so there is little to compose: use one of "
        "them",
        "at 0.95 two equal updates differ by a third of their norm",
    ),
    GeometryRule(
        "relative_norm",
        "large-update",
        LARGE_UPDATE,
        _above,
        "the update of {who} is {value} times as large as the weights it changes (0.5 is much)",
        "at 0.5 the update is half as large as the weight; extreme norms are a red flag "
        "(arXiv 2601.06672)",
    ),
    GeometryRule(
        "cross_terms",
        "factor-averaging-differs",
        CROSS_TERMS,
        _above,
        "peft's `linear` misses the average of {who} by {value} of its norm; `uniform` is exact",
        "a tenth of the norm; exact merging has an error of 0",
    ),
    GeometryRule(
        "shared_initialisation",
        "shared-initialisation",
        SHARED_INITIALISATION,
        _above,
        "the A of {who} started from one seed (cosine {value} row by row): their overlap on the "
        "input side is no shared skill",
        "a mean cosine of 0.5; rows of independent seeds have one near 0",
    ),
)


def about_geometry(
    measurements: Iterable[Measurement],
    balanced: bool = False,
    equal: Sequence[tuple[str, ...]] = (),
) -> list[Reason]:
    """One reason for each rule, about the adapters whose value exceeds its threshold most.

    balanced: the norms were made equal before composing, so that they give no warning. equal: pairs
    of adapters whose updates are equal. That nearly equal updates started from one seed is no
    warning of its own. One more reason says where no pair is redundant or opposed.
    """
    whole = [m for m in measurements if m.module is None and m.value is not None]
    alike = {m.adapters for m in whole if m.name == "cosine" and (m.value or 0.0) > EQUAL_COSINE}
    whole = [m for m in whole if m.name != "shared_initialisation" or m.adapters not in alike]
    reasons = [_same(pair) for pair in equal]
    for rule in RULES:
        if balanced and rule.code == "norm-disparity":
            continue
        beyond = [
            m
            for m in whole
            if m.name == rule.diagnostic and rule.beyond(float(m.value or 0.0), rule.threshold)
        ]
        if rule.code == "nearly-equal-updates":
            beyond = [m for m in beyond if tuple(sorted(m.adapters)) not in equal]
        if beyond:
            reasons.append(_by_rule(rule, beyond, whole))
    return [*reasons, *_unrelated(whole)]


def _by_rule(
    rule: GeometryRule, beyond: Sequence[Measurement], whole: Sequence[Measurement]
) -> Reason:
    """The reason of one rule, about the worst of the measurements beyond its threshold."""
    worst = max(beyond, key=lambda m: (_distance(rule, float(m.value or 0.0)), m.adapters))
    value = float(worst.value or 0.0)
    shown = 1 / value if rule.beyond is _uneven and 0 < value < 1 else value
    text = rule.text.format(who=listing(worst.adapters), value=rule.shown(shown))
    if rule.code == "norm-disparity":
        text = _who_is_larger(worst.adapters, whole, rule.shown(shown)) or text
    kind = "pair" if len(worst.adapters) > 1 else "adapter"
    more = f" ({count(len(beyond), kind)} so)" if len(beyond) > 1 else ""
    said = fmt.sentence(text + more + ".", names=(*worst.adapters, "peft"))
    return Reason(rule.code, said, value, rule.threshold, rule.source, "info")


def _same(pair: Sequence[str]) -> Reason:
    return Reason(
        "same-adapter",
        f"{listing(pair)} are one adapter given twice: their updates are equal, so leave one out.",
        1.0,
        1.0,
        "equal directions and norms: composing them only changes the strength",
    )


def _who_is_larger(names: Sequence[str], whole: Iterable[Measurement], factor: str) -> str:
    """The warning of unequal norms, with the larger adapter named; "" where no norm is known."""
    norms = {m.adapters[0]: m.value or 0.0 for m in whole if m.name == "norm"}
    if not all(name in norms for name in names):
        return ""
    small, large = sorted(names, key=norms.__getitem__)
    return (
        f"{large} is {factor} times larger than {small}, which hardly shows in a merge: try "
        "--balance norm"
    )


def _unrelated(whole: Iterable[Measurement]) -> list[Reason]:
    """Where no pair is opposed or nearly equal, the cosine that is farthest from 0."""
    cosines = [m.value or 0.0 for m in whole if m.name == "cosine" and len(m.adapters) == 2]
    if not cosines or min(cosines) < OPPOSED_COSINE or max(cosines) > EQUAL_COSINE:
        return []
    farthest = max(cosines, key=abs)
    text = (
        f"Cosine {fmt.number(farthest)}: neither opposed ({fmt.number(OPPOSED_COSINE)}) nor "
        f"redundant ({fmt.number(EQUAL_COSINE)})."
    )
    source = "at 0 two updates are orthogonal"
    return [Reason("unrelated-updates", text, farthest, EQUAL_COSINE, source)]


def _distance(rule: GeometryRule, value: float) -> float:
    if rule.beyond is _uneven and value < 1:
        return 1 / value if value > 0 else float("inf")
    return -value if rule.beyond is _below else value
