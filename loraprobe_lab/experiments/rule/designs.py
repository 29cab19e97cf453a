"""The constructions of a decision that are compared: a test of one pair, and alpha over the looks.

A construction has an interval of one pair, corrects for all systems and baselines or for those that
contend, and spends alpha over the looks in some way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from loraprobe.defaults import ALPHA
from loraprobe.evaluation import statistics
from loraprobe.evaluation.rounds import boundaries
from loraprobe_lab.experiments.rule.decisions import Array

CENTRE = 0.3  # share of the items at which the confidence sequence is the narrowest

Signed = Callable[[Array, Array, float, float], Array]  # gained, lost, n, difference -> z


def bonett_price(gained: Array, lost: Array, n: float, difference: float) -> Array:
    mean, se = moments(gained, lost, n)
    return np.asarray((mean - difference) / se)


def tango(gained: Array, lost: Array, n: float, difference: float) -> Array:
    """The score test (Tango 1998): the variance is that of the most likely shares there."""
    b = (2 * n - gained + lost) * difference - gained - lost
    root = np.sqrt(np.maximum(b * b + 8 * n * lost * difference * (1 - difference), 0.0))
    variance = ((root - b) / (2 * n) + difference * (1 - difference)) / n
    return np.asarray(((gained - lost) / n - difference) / np.sqrt(np.maximum(variance, 1e-12)))


def likelihood_ratio(gained: Array, lost: Array, n: float, difference: float) -> Array:
    half = statistics.HALF
    size = np.full_like(gained, n + 2 * half)
    return statistics.signed_root(
        gained + half, lost + half, size, np.full_like(gained, difference)
    )


def moments(gained: Array, lost: Array, n: float) -> tuple[Array, Array]:
    """Bonett and Price's mean and standard error."""
    mean = (gained - lost) / (n + 2)
    return mean, np.sqrt(((gained + lost + 2) / (n + 2) - mean**2) / (n + 2))


def squared(share: float) -> float:
    return share**2


def o_brien_fleming(share: float) -> float:
    return 2 * float(special.ndtr(special.ndtri(ALPHA / 2) / math.sqrt(share))) / ALPHA


def pocock(share: float) -> float:
    return math.log(1 + (math.e - 1) * share)


def spent_by(spending: Callable[[float], float]) -> Callable[[Sequence[float]], list[float]]:
    """The alpha of each look if alpha * spending(share) is spent by each share of the items."""
    return lambda shares: list(boundaries(shares, [ALPHA * spending(share) for share in shares]))


def confidence_sequence(shares: Sequence[float]) -> list[float]:
    """The alpha of each look under a normal mixture (Robbins 1970), valid at any time."""
    log = -2 * math.log(ALPHA)
    rho = CENTRE / (log + math.log(log) + 1)
    bounds = [math.sqrt((t + rho) / t * math.log((t + rho) / (rho * ALPHA**2))) for t in shares]
    return [2 * float(special.ndtr(-bound)) for bound in bounds]


@dataclass(frozen=True)
class Design:
    """A construction; alphas: shares of the items at the looks -> alpha of each; None: one look."""

    name: str
    signed: Signed = likelihood_ratio
    contention: bool = True
    alphas: Callable[[Sequence[float]], list[float]] | None = None


DESIGNS = (
    Design("Bonett and Price, all pairs", bonett_price, contention=False),
    Design("score (Tango), all pairs", tango, contention=False),
    Design("likelihood ratio, all pairs", contention=False),
    Design("likelihood ratio, contending pairs"),
    Design("... alpha spent as t^2", alphas=spent_by(squared)),
    Design("... spent as O'Brien and Fleming", alphas=spent_by(o_brien_fleming)),
    Design("... spent as Pocock", alphas=spent_by(pocock)),
    Design("... confidence sequence", alphas=confidence_sequence),
)

# On tasks of so few clusters that the first look has more than half of them.
FEW_DESIGNS = (
    Design("one look"),
    Design("two looks, alpha spent as t^2", alphas=spent_by(squared)),
    Design("two looks, alpha spent as t^4", alphas=spent_by(lambda share: share**4)),
)
