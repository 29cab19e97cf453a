"""From a forecast gain to the probability that the composition gains more than a margin.

`calibration.json` in this folder ships with the package; `loraprobe lab calibrate` writes such
files from compositions whose gain was measured. Its five coefficients say how measured gains are
spread around a forecast f, with b the best score that the base or a single adapter reaches:

    t(x)            = asinh(x / unit)            about linear below `unit`, logarithmic above
    centre(f, b)    = intercept + forecast * t(f) + baseline * b
    P(gain > m | f) = 1 / (1 + exp(-(centre(f, b) - t(m)) / spread))

The forecast f comes from a sample of items and has a standard error e, so P is the mean over
f - sqrt(3) e, f and f + sqrt(3) e with weights 1/6, 2/3 and 1/6 (Gauss and Hermite's rule of three
points). It holds for any margin m. Another prior q multiplies the odds by q / (1 - q) over
p / (1 - p), with p the share of measured compositions that gained more than m.

The errors of such probabilities depend on the base. A base is `small` if its hidden size is at most
SMALL, as of the bases that the lab trains, and else `natural`. A probability is given only for a
kind and an architecture (`model_type` in config.json) of which the errors were measured.

A file holds:

format        3
made_by       the command that wrote it
coefficients  "unit", "intercept", "forecast", "baseline", "spread"
measured      "cases", "bases", "forecast" [lowest, highest], "adapters" [their numbers], "kinds"
              [{"tasks", "hops", "metric"}], "figures" {name: [lowest, highest]} of the weights
gained        [[margin, share of the cases that gained more], ...], margins rising
accuracy      kind of base -> "where", "architectures", "cases", "auroc" (within a scenario, or
              null), "brier", "likely" (how many cases got a probability of at least LIKELY_FROM),
              "wrong" (the share of these that did not gain, or null); only of kinds of which
              enough cases were measured
classes       [{"base": kind of base, "tasks", "hops", "metric", "sets", "bases", "gained": as
              above, but of the best composition of each adapter set}]
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from loraprobe.errors import UsageError
from loraprobe.records import Interval
from loraprobe.verdict.evidence import BaseShape, Kind

FILE = "calibration.json"
FORMAT = 3
SMALL = 256  # the largest hidden size of a small base
SIZES = {
    "small": f"bases of hidden size up to {SMALL}",
    "natural": f"bases of hidden size above {SMALL}",
}
Shares = tuple[tuple[float, float], ...]  # (margin, share that gained more), margins rising
NO_FIGURES: Mapping[str, float] = MappingProxyType({})
QUADRATURE = ((-math.sqrt(3), 1 / 6), (0.0, 2 / 3), (math.sqrt(3), 1 / 6))


@dataclass(frozen=True)
class Coefficients:
    """See the formula of the module."""

    unit: float
    intercept: float
    forecast: float
    baseline: float
    spread: float

    def scaled(self, gain: float) -> float:
        """t(gain)."""
        return math.asinh(gain / self.unit)

    def exceeds(self, margin: float, forecast: float, baseline: float) -> float:
        """P(gain > margin) for a forecast without error."""
        centre = self.intercept + self.forecast * self.scaled(forecast) + self.baseline * baseline
        return _sigmoid((centre - self.scaled(margin)) / self.spread)


@dataclass(frozen=True)
class Accuracy:
    """How good the probabilities were on left-out compositions on one kind of base."""

    where: str
    architectures: tuple[str, ...]
    cases: int
    auroc: float | None
    brier: float
    likely: int
    wrong: float | None


@dataclass(frozen=True)
class ReferenceClass:
    """What the best composition of measured adapter sets gained, on one kind of base and task."""

    base: str
    kind: Kind
    sets: int
    bases: int
    gained: Shares


@dataclass(frozen=True)
class Calibration:
    """A calibration file in memory; see the module."""

    coefficients: Coefficients
    cases: int
    bases: int
    forecast: Interval
    adapters: tuple[int, ...]
    kinds: tuple[Kind, ...]
    figures: Mapping[str, Interval]
    gained: Shares
    accuracy: Mapping[str, Accuracy]
    classes: tuple[ReferenceClass, ...]

    def probability(
        self,
        margin: float,
        forecast: float,
        error: float,
        baseline: float,
        prior: float | None = None,
    ) -> float:
        """P(gain > margin); error: the forecast's standard error; prior None: the cases' own."""
        found = sum(
            weight * self.coefficients.exceeds(margin, forecast + step * error, baseline)
            for step, weight in QUADRATURE
        )
        if prior is None:
            return found
        return _sigmoid(_log_odds(found) + _log_odds(prior) - _log_odds(self.prior(margin)))

    def prior(self, margin: float) -> float:
        """The share of the measured compositions that gained more than this margin."""
        return share_above(self.gained, margin)

    def why_outside(
        self, forecast: float, adapters: int, kind: Kind, figures: Mapping[str, float] = NO_FIGURES
    ) -> str:
        """What lies outside of what was measured; empty if nothing does.

        figures: of the adapters' weights, by name.
        """
        low, high = self.forecast
        if not low <= forecast <= high:
            return f"its forecast is {forecast:+.2f}, and {low:+.2f} to {high:+.2f} were measured"
        if adapters not in self.adapters:
            known = " or ".join(map(str, self.adapters))
            return f"it has {adapters} adapters, and {known} were measured"
        if kind not in self.kinds:
            known = "; ".join(map(str, self.kinds))
            return f"its kind of task ({kind}) was not measured (measured: {known})"
        for name, (low, high) in self.figures.items():
            if not low <= figures.get(name, low) <= high:
                what = f"its {name.replace('_', ' ')} is {figures[name]:.3g}"
                return f"{what}, and {low:.3g} to {high:.3g} were measured"
        return ""

    def why_unmeasured(self, base: BaseShape | None) -> str:
        """Why no error is known of probabilities on such a base; empty if one is."""
        if base is None:
            return "the size of the base is not known"
        measured = self.accuracy.get(kind_of_base(base))
        if measured is None:
            kinds = " and ".join(SIZES[kind] for kind in self.accuracy) or "no base"
            return (
                f"how often such probabilities are wrong was measured on {kinds}, and this one has "
                f"{base.hidden_size or 'an unknown size'}"
            )
        if base.architecture not in measured.architectures:
            known = " or ".join(measured.architectures)
            return f"errors were measured on {known} bases, and this one is {base.architecture}"
        return ""

    def reference_class(self, base: BaseShape | None, kind: Kind) -> ReferenceClass | None:
        """The measured adapter sets on such a base and kind of task."""
        if base is None:
            return None
        wanted = kind_of_base(base), kind
        return next((one for one in self.classes if (one.base, one.kind) == wanted), None)


def kind_of_base(base: BaseShape) -> str:
    """ "small" or "natural"; a base of unknown size is natural."""
    return "small" if base.hidden_size is not None and base.hidden_size <= SMALL else "natural"


def share_above(gained: Shares, margin: float) -> float:
    """The share that gained more than a margin.

    Between two margins of the file it is linear, beyond them constant.
    """
    (first, share), *_ = gained
    if margin <= first:
        return share
    for (left, a), (right, b) in pairwise(gained):
        if margin <= right:
            return a + (b - a) * (margin - left) / (right - left)
    return gained[-1][1]


def _sigmoid(logit: float) -> float:
    return math.exp(-math.log1p(math.exp(-logit))) if logit > -700 else 0.0


def _log_odds(share: float) -> float:
    share = min(max(share, 1e-12), 1 - 1e-12)
    return math.log(share) - math.log1p(-share)


@functools.cache
def shipped() -> Calibration:
    """The calibration that ships with the package."""
    file = importlib.resources.files("loraprobe.verdict") / FILE
    return _parsed(file.read_text(encoding="utf-8"), f"loraprobe's own {FILE}")


def read_calibration(path: str | Path) -> Calibration:
    """A calibration file that somebody names. Raises UsageError where it is none."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read as a calibration ({type(error).__name__}); "
            "`loraprobe lab calibrate` writes one."
        ) from None
    return _parsed(text, str(path))


def _parsed(text: str, name: str) -> Calibration:
    try:
        return calibration_of(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UsageError(
            f"{name} is no calibration of format {FORMAT}: {what}; `loraprobe lab calibrate` "
            "writes one."
        ) from None


def calibration_of(document: Mapping[str, Any]) -> Calibration:
    """A calibration from its document. Raises ValueError, KeyError or TypeError for one that is
    none."""
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise ValueError(f"its format is not {FORMAT}")
    given, measured, accuracy = (document[k] for k in ("coefficients", "measured", "accuracy"))
    coefficients = Coefficients(**{f.name: _number(given[f.name]) for f in fields(Coefficients)})
    if coefficients.unit <= 0 or coefficients.spread <= 0:
        raise ValueError("its unit or its spread is not above 0")
    gained = _shares(document["gained"])
    low, high = measured["forecast"]
    return Calibration(
        coefficients,
        cases=int(measured["cases"]),
        bases=int(measured["bases"]),
        forecast=(_number(low), _number(high)),
        adapters=tuple(int(n) for n in measured["adapters"]),
        kinds=tuple(Kind(**kind) for kind in measured["kinds"]),
        figures={name: (_number(a), _number(b)) for name, (a, b) in measured["figures"].items()},
        gained=gained,
        accuracy={kind: _accuracy(found) for kind, found in accuracy.items()},
        classes=tuple(_reference_class(one) for one in document["classes"]),
    )


def _accuracy(given: Mapping[str, Any]) -> Accuracy:
    return Accuracy(**{**given, "architectures": tuple(given["architectures"])})


def _reference_class(given: Mapping[str, Any]) -> ReferenceClass:
    kind = Kind(**{name: given[name] for name in ("tasks", "hops", "metric")})
    sets, bases = int(given["sets"]), int(given["bases"])
    return ReferenceClass(given["base"], kind, sets, bases, _shares(given["gained"], ends=True))


def _shares(given: Any, ends: bool = False) -> Shares:
    """Margins and shares. ends: a share may be 0 or 1, since no odds are made of it."""
    gained = tuple((_number(margin), _number(share)) for margin, share in given)
    margins = [margin for margin, _ in gained]
    if not gained or margins != sorted(set(margins)):
        raise ValueError("the margins of what was gained do not rise")
    if not all(0 < share < 1 or (ends and share in (0, 1)) for _, share in gained):
        raise ValueError("a share of what was gained does not lie between 0 and 1")
    return gained


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)
