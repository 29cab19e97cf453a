"""Warnings about properties of the weights that may harm a composition, by geometry.toml.

They decide nothing. The thresholds follow from what the figure does to a sum of two updates; none
is fitted.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loraprobe import defaults
from loraprobe.defaults import EQUAL_COSINE, OPPOSED_COSINE
from loraprobe.formatting import count, listing
from loraprobe.records import Measurement, Reason
from loraprobe.verdict import formatting as fmt
from loraprobe.verdict.codes import reason_of
from loraprobe.verdict.evidence import Evidence


@dataclass(frozen=True)
class GeometryRule:
    """One warning: the diagnostic, the threshold of its whole-adapter value, and the text.

    sense: whether a value warns above or below the threshold, or as a ratio that exceeds it either
    way. `digits` of the value are printed.
    """

    code: str
    diagnostic: str
    threshold: float
    sense: Literal["above", "below", "ratio"]
    text: str
    digits: int = 2

    def distance(self, value: float) -> float:
        """How far a value goes in the sense of the warning."""
        if self.sense == "ratio" and value < 1:
            return 1 / value if value > 0 else math.inf
        return -value if self.sense == "below" else value

    def beyond(self, value: float) -> bool:
        """Whether a value warns."""
        return self.distance(value) > self.distance(self.threshold)

    def shown(self, value: float) -> str:
        """The value as it is printed; a ratio as that of the larger to the smaller."""
        if self.sense == "ratio":
            return f"{self.distance(value):,.1f}"
        return fmt.number(value, self.digits)


_READ = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
RULES = tuple(
    GeometryRule(code, **{**row, "threshold": getattr(defaults, row["threshold"])})
    for code, row in _READ.items()
)


def about_geometry(evidence: Evidence) -> Iterator[Reason]:
    """One reason for each rule, about the adapters whose value exceeds its threshold most.

    Norms that were made equal before composing give no warning, and neither does the common seed of
    nearly equal updates. Where no pair is redundant or opposed, one more reason gives the cosine
    that is farthest from 0.
    """
    whole = [m for m in evidence.diagnostics if m.module is None and m.value is not None]
    alike = {m.adapters for m in whole if m.name == "cosine" and (m.value or 0.0) > EQUAL_COSINE}
    whole = [m for m in whole if m.name != "shared_initialisation" or m.adapters not in alike]
    equal = evidence.duplicates
    yield from (reason_of("same-adapter", 1.0, 1.0, names=listing(pair)) for pair in equal)
    for rule in RULES:
        if evidence.balanced and rule.code == "norm-disparity":
            continue
        beyond = [m for m in whole if m.name == rule.diagnostic and rule.beyond(m.value or 0.0)]
        if rule.code == "nearly-equal-updates":
            beyond = [m for m in beyond if tuple(sorted(m.adapters)) not in equal]
        if beyond:
            yield _by_rule(rule, beyond, whole)
    cosines = [m.value or 0.0 for m in whole if m.name == "cosine" and len(m.adapters) == 2]
    if cosines and min(cosines) >= OPPOSED_COSINE and max(cosines) <= EQUAL_COSINE:
        farthest = max(cosines, key=abs)
        yield reason_of("unrelated-updates", farthest, EQUAL_COSINE, opposed=OPPOSED_COSINE)


def _by_rule(
    rule: GeometryRule, beyond: Sequence[Measurement], whole: Sequence[Measurement]
) -> Reason:
    """The reason of one rule, about the worst of the measurements beyond its threshold."""
    worst = max(beyond, key=lambda m: (rule.distance(m.value or 0.0), m.adapters))
    value = float(worst.value or 0.0)
    text = rule.text.format(who=listing(worst.adapters), value=rule.shown(value))
    if rule.code == "norm-disparity":
        text = _who_is_larger(worst.adapters, whole, rule.shown(value)) or text
    kind = "pair" if len(worst.adapters) > 1 else "adapter"
    more = f" ({count(len(beyond), kind)} so)" if len(beyond) > 1 else ""
    said = fmt.sentence(text + more + ".", names=(*worst.adapters, "peft"))
    return reason_of(rule.code, value, rule.threshold, text=said)


def _who_is_larger(names: Sequence[str], whole: Iterable[Measurement], factor: str) -> str:
    """The warning of unequal norms, with the larger adapter named; "" where no norm is known."""
    norms = {m.adapters[0]: m.value or 0.0 for m in whole if m.name == "norm"}
    if not all(name in norms for name in names):
        return ""
    small, large = sorted(names, key=norms.__getitem__)
    return (
        f"{small} hardly shows in a merge, because {large} is {factor} times larger: try --balance "
        "norm"
    )
