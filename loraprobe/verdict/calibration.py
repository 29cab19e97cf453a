"""From the gain that a few items measured to the probability that the true gain exceeds a margin.

`calibration.json` in this folder ships with the package; `loraprobe lab calibrate` writes such
files from compositions whose gain was measured. Its four coefficients say how gains are spread
before anything is composed, with b the best score that the base or a single adapter reaches:

    t(x)         = asinh(x / unit)                about linear below `unit`, logarithmic above
    P(gain > m)  = 1 / (1 + exp(-(intercept + baseline * b - t(m)) / spread)),  gain <= 1 - b

A composition that was asked some items has a gain d with standard error e. The probability is that
of the product of this spread and a normal density of d around the gain, so it holds for any margin
and any number of items. Another prior q multiplies the odds by q / (1 - q) over p / (1 - p), with p
the share of measured compositions that gained more than m.

The errors of such probabilities depend on the base. A base is `small` if its hidden size is at most
SMALL, as of the bases that the lab trains, and else `natural`. A probability is given only for a
kind of which the errors were measured.

A file holds:

format        4
made_by       the command that wrote it
coefficients  "unit", "intercept", "baseline", "spread"
measured      "cases", "bases"
gained        [[margin, share of the cases that gained more], ...], margins rising
accuracy      kind of base -> "where", "sets", "items", "auroc" (within a kind of sets, or null),
              "brier", "likely" (how many sets got a probability of at least LIKELY_FROM), "wrong"
              (the share of these that did not gain, or null); of adapter sets whose compositions
              were asked so many items, only of kinds of which enough sets were measured
several       the same for sets with several tasks: of the probability that the mean gains and every
              skill is kept, after so many items of each task; no kind in older files
classes       [{"base": kind of base, "tasks", "hops", "metric", "sets", "bases", "gained": as
              above, but of the best composition of each adapter set}]
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, AliasPath, Field, FiniteFloat, TypeAdapter, ValidationError

from loraprobe.errors import UsageError
from loraprobe.json_types import first_problem
from loraprobe.verdict.evidence import BaseShape, Kind

FORMAT = 4
SMALL = 256  # the largest hidden size of a small base
SIZES = {
    "small": f"bases of hidden size up to {SMALL}",
    "natural": f"bases of hidden size above {SMALL}",
}
LEAST = 1e-3  # the smallest probability
STEP = 1e-3  # between the gains over which densities are summed


def _rising(gained: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    margins = [margin for margin, _ in gained]
    if not gained or margins != sorted(set(margins)):
        raise ValueError("the margins of what was gained do not rise")
    return gained


Above0 = Annotated[FiniteFloat, Field(gt=0)]
# (margin, share that gained more), margins rising. Odds are made of no share that is 0 or 1.
Odds = Annotated[FiniteFloat, Field(gt=0, lt=1)]
GainedOdds = Annotated[tuple[tuple[FiniteFloat, Odds], ...], AfterValidator(_rising)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
GainedShares = Annotated[tuple[tuple[FiniteFloat, Share], ...], AfterValidator(_rising)]


@dataclass(frozen=True)
class Coefficients:
    """See the formula of the module."""

    unit: Above0
    intercept: FiniteFloat
    baseline: FiniteFloat
    spread: Above0

    def exceeds(self, margin: float, baseline: float, gain: float, error: float) -> float:
        """P(true gain > margin) where a gain was measured with a standard error."""
        gains = np.arange(-1.0, 1.0 - baseline + STEP, STEP)
        z = (
            np.arcsinh(gains / self.unit) - self.intercept - self.baseline * baseline
        ) / self.spread
        prior = -np.logaddexp(z, 0) - np.logaddexp(-z, 0) - np.log(self.unit**2 + gains**2) / 2
        logs = prior - ((gains - gain) / max(error, STEP)) ** 2 / 2
        weights = np.exp(logs - logs.max())
        return float(weights[gains > margin].sum() / weights.sum())


@dataclass(frozen=True)
class Accuracy:
    """How good the probabilities were on left-out adapter sets on one kind of base.

    Their compositions were asked `items` items, and their outcome on all items was clear.
    """

    where: str
    sets: int
    items: int
    auroc: float | None
    brier: float
    likely: int
    wrong: float | None


@dataclass(frozen=True)
class ReferenceClass(Kind):
    """What the best composition of measured adapter sets gained, on one kind of base and task."""

    base: str
    sets: int
    bases: int
    gained: GainedShares


@dataclass(frozen=True)
class Calibration:
    """A calibration file in memory; see the module."""

    format: Literal[4]
    coefficients: Coefficients
    cases: Annotated[int, Field(validation_alias=AliasPath("measured", "cases"))]
    bases: Annotated[int, Field(validation_alias=AliasPath("measured", "bases"))]
    gained: GainedOdds
    accuracy: Mapping[str, Accuracy]
    classes: tuple[ReferenceClass, ...]
    several: Mapping[str, Accuracy] = field(default_factory=dict)

    def probability(
        self,
        margin: float,
        baseline: float,
        gain: float,
        error: float,
        prior: float | None = None,
    ) -> float:
        """P(true gain > margin); error: the standard error of the measured gain.

        prior: the share expected to gain more than the margin; None for the cases' own, with which
        it lies between LEAST and 1 - LEAST: these cases could not show more.
        """
        found = self.coefficients.exceeds(margin, baseline, gain, error)
        found = min(max(found, LEAST), 1 - LEAST)
        if prior is None:
            return found
        own = self.prior(margin)
        gains, fails = found * prior * (1 - own), (1 - found) * (1 - prior) * own
        return gains / (gains + fails)

    def prior(self, margin: float) -> float:
        """The share of the measured compositions that gained more than this margin."""
        return share_above(self.gained, margin)

    def errors(self, several: bool = False) -> Mapping[str, Accuracy]:
        """Kind of base -> the errors of probabilities, for one task or for several."""
        return self.several if several else self.accuracy

    def why_unmeasured(self, base: BaseShape | None, several: bool = False) -> str:
        """Why no error is known of probabilities on such a base; empty if one is."""
        if base is None:
            return "the size of the base is not known"
        measured = self.errors(several)
        if kind_of_base(base) in measured:
            return ""
        kinds = " and ".join(SIZES[kind] for kind in measured) or "no base"
        of = " for several tasks" if several else ""
        return (
            f"how often such probabilities{of} are wrong was measured on {kinds}, and this one "
            f"has {base.hidden_size or 'an unknown size'}"
        )

    def reference_class(self, base: BaseShape | None, kind: Kind) -> ReferenceClass | None:
        """The measured adapter sets on such a base and kind of task."""
        if base is None:
            return None
        wanted = kind_of_base(base), kind.tasks, kind.hops, kind.metric
        named = ((one, (one.base, one.tasks, one.hops, one.metric)) for one in self.classes)
        return next((one for one, name in named if name == wanted), None)


def kind_of_base(base: BaseShape) -> str:
    """ "small" or "natural"; a base of unknown size is natural."""
    return "small" if base.hidden_size is not None and base.hidden_size <= SMALL else "natural"


def share_above(gained: GainedShares, margin: float) -> float:
    """The share that gained more than a margin.

    Between two margins of the file it is linear, beyond them constant.
    """
    margins, shares = zip(*gained, strict=True)
    return float(np.interp(margin, margins, shares))


@functools.cache
def shipped() -> Calibration:
    """The calibration that ships with the package."""
    return read_calibration(Path(__file__).with_name("calibration.json"))


_FILE = TypeAdapter(Calibration)


def read_calibration(path: str | Path) -> Calibration:
    """A calibration file. Raises UsageError where it is none."""
    try:
        return _FILE.validate_json(Path(path).read_text(encoding="utf-8"), strict=True)
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read as a calibration ({type(error).__name__})"
    except ValidationError as error:
        problem = f"is no calibration of format {FORMAT}: {first_problem(error)}"
    raise UsageError(f"{path} {problem}; `loraprobe lab calibrate` writes one.")
