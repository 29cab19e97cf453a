"""The terms of a calibrated model: what one feature adds to the logit, with plain arithmetic.

A logistic term is coefficient * (transform(value) - mean) / scale. An additive term is a table:
piecewise constant ("step") or piecewise linear ("linear") in the value. A term with a family
counts for that family alone. The pseudo-feature "constant" is 1 everywhere, so that a family can
have an intercept of its own.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from loraprobe.records import Interval

CONSTANT = "constant"
EDGE = 0.01  # shares closer than this to 0 or 1 count as this: a hundred items tell no more


def _log1p(value: float) -> float:
    return math.copysign(math.log1p(abs(value)), value)


def _logit(value: float) -> float:
    share = min(max(value, EDGE), 1 - EDGE)
    return math.log(share / (1 - share))


TRANSFORMS: Mapping[str, Callable[[float], float]] = {
    "identity": float,
    "log1p": _log1p,  # sign(x) log(1 + |x|)
    "logit": _logit,  # of a share, first brought into [0.01, 0.99]
    "clip": float,  # first brought into the term's range
    "missing": lambda value: 0.0,  # 1 where the feature is missing, else 0
}


@dataclass(frozen=True)
class Term:
    """What one feature adds to the logit. `typical`: its median in (failures, successes).

    `missing` stands for what is added up where the feature was not measured; None: without it
    there is no probability.
    """

    feature: str
    family: str | None = None
    missing: float | None = 0.0
    typical: tuple[float, float] | None = None

    def counts_for(self, family: str) -> bool:
        return self.family in (None, family)

    def logit(self, value: float | None) -> float | None:
        """The contribution to the logit; None where the feature must not be missing."""
        raise NotImplementedError


@dataclass(frozen=True)
class Logistic(Term):
    """coefficient * z, z = (transform(value) - mean) / scale; z = `missing` without a value."""

    transform: str = "identity"
    mean: float = 0.0
    scale: float = 1.0
    coefficient: float = 0.0
    range: Interval | None = None

    def logit(self, value: float | None) -> float | None:
        if self.transform == "missing":
            moved: float = 1.0 if value is None else 0.0
        elif value is None:
            return None if self.missing is None else self.coefficient * self.missing
        else:
            if self.transform == "clip" and self.range is not None:
                value = min(max(value, self.range[0]), self.range[1])
            moved = TRANSFORMS[self.transform](value)
        return self.coefficient * (moved - self.mean) / self.scale


@dataclass(frozen=True)
class Additive(Term):
    """A table over the value; `missing` is the logit without a value.

    "linear": a value at each knot, straight between them, constant beyond. "step": one value more
    than knots, the first up to and with the first knot.
    """

    knots: tuple[float, ...] = ()
    values: tuple[float, ...] = ()
    shape: str = "linear"

    def logit(self, value: float | None) -> float | None:
        if value is None:
            return self.missing
        place = bisect.bisect_left(self.knots, value)
        if self.shape == "step":
            return self.values[place]
        if place == 0:
            return self.values[0]
        if place == len(self.knots):
            return self.values[-1]
        left, right = self.knots[place - 1], self.knots[place]
        share = (value - left) / (right - left)
        return self.values[place - 1] + share * (self.values[place] - self.values[place - 1])


def read_term(kind: str, given: Mapping[str, Any]) -> Term:
    """One entry of a calibration file's "terms". Raises ValueError saying what is wrong with it."""
    made = _logistic(given) if kind == "logistic" else _additive(given)
    numbers = [x for x in _numbers(made) if x is not None]
    if not all(isinstance(x, (int, float)) and math.isfinite(x) for x in numbers):
        raise ValueError(f"the term of {made.feature} holds what is no finite number")
    return made


def _logistic(given: Mapping[str, Any]) -> Logistic:
    term = Logistic(
        **_common(given),
        transform=given.get("transform", "identity"),
        mean=given.get("mean", 0.0),
        scale=given.get("scale", 1.0),
        coefficient=given["coefficient"],
        range=tuple(given["range"]) if given.get("range") else None,
    )
    if term.transform not in TRANSFORMS:
        raise ValueError(f"the transform {term.transform!r} is none of {', '.join(TRANSFORMS)}")
    if not term.scale:
        raise ValueError(f"the scale of {term.feature} is zero")
    return term


def _additive(given: Mapping[str, Any]) -> Additive:
    term = Additive(
        **_common(given),
        knots=tuple(given["knots"]),
        values=tuple(given["values"]),
        shape=given.get("shape", "linear"),
    )
    if term.shape not in ("linear", "step"):
        raise ValueError(f"the shape {term.shape!r} is neither linear nor step")
    if list(term.knots) != sorted(set(term.knots)):
        raise ValueError(f"the knots of {term.feature} do not rise")
    if len(term.values) != len(term.knots) + (term.shape == "step") or not term.values:
        raise ValueError(f"the values of {term.feature} do not fit its knots")
    return term


def _common(given: Mapping[str, Any]) -> dict[str, Any]:
    typical = given.get("typical")
    return {
        "feature": given["feature"],
        "family": given.get("family"),
        "missing": given.get("missing", 0.0),
        "typical": (typical["failure"], typical["success"]) if typical else None,
    }


def _numbers(term: Term) -> tuple[float | None, ...]:
    found = (term.missing, *(term.typical or ()))
    if isinstance(term, Logistic):
        return (*found, term.mean, term.scale, term.coefficient, *(term.range or ()))
    return (*found, *term.knots, *term.values) if isinstance(term, Additive) else found
