"""The probability of a verdict, which never changes its decision.

It is that the composition of the verdict gains more than the margin, from its gain on the items
that were asked and the spread of measured gains. For several tasks it is multiplied by the
probability that every specialist's skill is kept (`probability_kept`). Controls have no part in it:
they can only revoke a `likely`. The verdict's probability is that of its own decision: this for
`likely`, its complement for `unlikely`. It is absent for `inconclusive`, where a decision against a
gain rests on more than the gain, and for kinds of bases and tasks on which nobody measured how
often such probabilities are wrong.

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
SMALL, as of the bases that the lab trains, `natural` up to LARGEST, and else `large`. A probability
is given only for a kind of which the errors were measured.

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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Annotated, Literal

import numpy as np
from pydantic import AfterValidator, AliasPath, Field, FiniteFloat, TypeAdapter, ValidationError

from loraprobe.defaults import ALPHA, FEWEST_ITEMS, MARGIN
from loraprobe.errors import UsageError
from loraprobe.formatting import count
from loraprobe.formatting import probability as as_words
from loraprobe.records import Gain, Reason, Verdict
from loraprobe.untrusted import first_problem
from loraprobe.verdict import Annotation, Annotator
from loraprobe.verdict.evidence import Evidence, TaskKind
from loraprobe.verdict.reasons import reason_of

FORMAT = 4
SMALL = 256  # the largest hidden size of a small base
# The largest hidden size of a natural base: four times that of SmolLM2-135M, the one that was
# measured. Nobody knows how wrong the probabilities are on larger ones.
LARGEST = 4 * 576
SIZES = {
    "small": f"bases of hidden size up to {SMALL}",
    "natural": f"bases of hidden size {SMALL + 1} to {LARGEST}",
    "large": f"bases of hidden size above {LARGEST}",
}
LIKELY_FROM = 0.9  # the probability that counts as a call of `likely`
FEWEST_SETS = 10  # measured adapter sets of a kind, from which their share is told
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
class ReferenceClass(TaskKind):
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
        self, margin: float, baseline: float, gain: float, error: float, prior: float | None = None
    ) -> float:
        """P(true gain > margin); error: the standard error of the measured gain.

        prior: the share expected to gain more than the margin; None for the cases' own, with which
        it lies between LEAST and 1 - LEAST: these cases could not show more.
        """
        chance = self.coefficients.exceeds(margin, baseline, gain, error)
        chance = min(max(chance, LEAST), 1 - LEAST)
        if prior is None:
            return chance
        measured = self.prior(margin)
        gains, fails = chance * prior * (1 - measured), (1 - chance) * (1 - prior) * measured
        return gains / (gains + fails)

    def prior(self, margin: float) -> float:
        """The share of the measured compositions that gained more than this margin."""
        return share_above(self.gained, margin)


def kind_of_base(hidden_size: int | None) -> str:
    """ "small", "natural" or "large", "" for an unknown size."""
    if hidden_size is None:
        return ""
    if hidden_size <= SMALL:
        return "small"
    return "natural" if hidden_size <= LARGEST else "large"


def share_above(gained: GainedShares, margin: float) -> float:
    """The share that gained more than a margin.

    Between two margins of the file it is linear, beyond them constant.
    """
    margins, shares = zip(*gained, strict=True)
    return float(np.interp(margin, margins, shares))


@functools.cache
def shipped_calibration() -> Calibration:
    """The calibration that ships with the package."""
    return read_calibration(Path(__file__).with_name("calibration.json"))


def read_calibration(path: str | Path) -> Calibration:
    """A calibration file. Raises UsageError where it is none."""
    try:
        document = Path(path).read_text(encoding="utf-8")
        return TypeAdapter(Calibration).validate_json(document, strict=True)
    except (OSError, UnicodeDecodeError) as error:
        problem = f"cannot be read as a calibration ({type(error).__name__})"
    except ValidationError as error:
        problem = f"is no calibration of format {FORMAT}: {first_problem(error)}"
    raise UsageError(f"{path} {problem}; `loraprobe lab calibrate` writes one.")


@dataclass(frozen=True)
class Probabilities(Annotator):
    """Tells the probability of a gain. prior: see `Calibration.probability`."""

    calibration: Calibration
    prior: float | None = None

    def annotate(self, verdict: Verdict, evidence: Evidence) -> Annotation:
        gain = gain_of(verdict, evidence)
        if gain is None or verdict.evidence not in ("pilot", "evaluation"):
            return Annotation(tuple(_about_measured_sets(evidence, verdict, self.calibration)))
        known = self.calibration
        accuracy = known.several if evidence.several else known.accuracy
        if why := _why_none(gain, evidence, accuracy):
            return Annotation((reason_of("outside-calibration", why=why),))
        margin, baseline = evidence.margin, evidence.baseline or 0.0
        probability = known.probability(
            margin, baseline, gain.difference, gain.estimate.error, self.prior
        )
        probability *= probability_kept(gain, evidence)
        prior = known.prior(margin) if self.prior is None else self.prior
        errors = accuracy[kind_of_base(evidence.hidden_size)]
        reason = _measured_on(gain, probability, prior, evidence, errors)
        return Annotation((reason,), probability, prior)


def gain_of(verdict: Verdict, evidence: Evidence) -> Gain | None:
    """The gain that the verdict is about, with its interval for one comparison."""
    decisive = verdict.gain
    return None if decisive is None else evidence.gain(decisive.system, decisive.form)


def probability_kept(gain: Gain, evidence: Evidence) -> float:
    """P(every specialist's skill and every guard is kept) by the composition of a gain.

    Tasks and guards have items of their own, so their probabilities are multiplied. Each takes the
    end of its interval on the side of the threshold for a normal deviate; the interval's own end
    at the threshold is then met exactly. 0 where a retention or a guard is not known.
    """
    rounds = evidence.measured.rounds
    level = 1 - ALPHA if rounds is None else rounds.level
    normal, chance = NormalDist(), 1.0
    best = evidence.candidate(gain.system, gain.part)
    if best is None:
        return chance
    shared = len(best.guards)  # the upper ends of guards divide the error among them
    for share, of in (
        *((s, 1) for s in best.kept.values()),
        *((s, shared) for s in best.guards.values()),
    ):
        if share is None:
            return 0.0
        above = share.value - share.threshold
        half = share.value - share.low if above > 0 else share.high - share.value
        error = (1 - level) / (1 if above > 0 else of)
        chance *= normal.cdf(normal.inv_cdf(1 - error / 2) * above / max(half, 1e-9))
    return chance


def _why_none(gain: Gain, evidence: Evidence, accuracy: Mapping[str, Accuracy]) -> str:
    """Why there is no probability; empty if there is one."""
    if evidence.losses:
        return "its scores are losses, and gains were measured of answers that are right or wrong"
    for row in evidence.scores(gain.system, gain.part) if evidence.several else ():
        if row.retention is None:
            return f"no single adapter is shown to be better at {row.task} than the base"
    asked = gain.estimate.clusters
    if asked < FEWEST_ITEMS:
        return f"{count(asked, 'question')}, and {FEWEST_ITEMS} are needed"
    if evidence.hidden_size is None:
        return "the size of the base is not known"
    if kind_of_base(evidence.hidden_size) in accuracy:
        return ""
    kinds = " and ".join(SIZES[kind] for kind in accuracy) or "no base"
    of = " for several tasks" if evidence.several else ""
    return (
        f"how often such probabilities{of} are wrong was measured on {kinds}, and this one has "
        f"{evidence.hidden_size}"
    )


def _measured_on(
    gain: Gain, probability: float, prior: float, evidence: Evidence, accuracy: Accuracy
) -> Reason:
    """The probability, its prior, and how wrong such probabilities were."""
    errors = ""
    if accuracy.auroc is not None:
        errors = f" and an AUROC of {accuracy.auroc:.2f}"
    if accuracy.wrong is not None:
        errors += (
            f"; of {accuracy.likely} adapter sets given {LIKELY_FROM:.2f} or more, "
            f"{accuracy.wrong:.0%} did not gain"
        )
    kept = f" and keeps {evidence.retention:.2f} of every specialist's gain"
    kept = (kept if evidence.several else "") + (
        " and keeps every guard" if evidence.guard_names else ""
    )
    return reason_of(
        "probability-measured-on",
        probability,
        LIKELY_FROM,
        source=f"{count(accuracy.sets, 'adapter set')} whose outcome was measured (--prior)",
        gain=gain,
        margin=evidence.margin,
        keeping=kept,
        probability=as_words(probability),
        items=count(gain.n, "item"),
        prior=prior,
        measured=accuracy,
        each=" of each task" if evidence.several else "",
        MARGIN=MARGIN,
        errors=errors,
    )


def _about_measured_sets(
    evidence: Evidence, verdict: Verdict, calibration: Calibration
) -> Iterator[Reason]:
    """What adapter sets on such a base and kind of task gained, where no composition was asked.

    Weights and probes know no task; they have ELSEWHERE.
    """
    if verdict.evidence != "base" or verdict.decision != "inconclusive":
        return
    base, kind = kind_of_base(evidence.hidden_size), evidence.kind_of_task
    wanted = base, kind.tasks, kind.hops, kind.metric
    classes = {(row.base, row.tasks, row.hops, row.metric): row for row in calibration.classes}
    similar = classes.get(wanted)
    if similar is None or similar.sets < FEWEST_SETS:
        return
    share = share_above(similar.gained, evidence.margin)
    bases = count(similar.bases, f"{similar.base} base")
    yield reason_of(
        "measured-elsewhere",
        share,
        evidence.margin,
        source="the sets that loraprobe lab calibrate measured (examples/calibration)",
        sets=f"{similar.sets} adapter sets for {similar} on {bases}, {share:.0%} had a "
        "composition that",
        margin=evidence.margin,
        over=" in the mean" if similar.tasks > 1 else "",
    )
