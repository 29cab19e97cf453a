"""On how many questions a target score is reached, told from what training gave on fewer. loraprobe
does not print it: the comparison in docs/baseline.md says why.

A learning curve is read on two scales: the logarithm of the odds of a right answer over the
logarithm of the number of questions. How steep curves are, how far they leave
a straight line and how much one training differs from the next was measured on other tasks
before. That knowledge and the points at hand give a Gaussian process, and this the
number and its interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST_POINTS = 3
FARTHEST = 8  # times the most questions of a point: as far as forecasts were compared
LEARNED = 0.1  # by which the last point has to exceed the start
SLOPE, SLOPE_SD = 0.75, 0.3  # logits that a doubling of the questions gives, over tasks
BEND = 0.2  # standard deviation in logits by which a curve leaves its line in one doubling
ROUGH = 0.2  # standard deviation in logits between one training and the next, beside counting
LEVEL_SD = 5.0  # of the first point: nothing is known of it beforehand
SURE = 1.2816  # standard deviations: 80 % lie between
STEPS = 50  # in which a doubling is searched


@dataclass(frozen=True)
class Point:
    """Of `asked` questions `right` were answered rightly after training on `items` others."""

    items: int
    right: float
    asked: int


@dataclass(frozen=True)
class Needed:
    """So many questions reach the target; between low and high in 80 of 100 cases."""

    items: int
    low: int
    high: float


def needed(points: Sequence[Point], start: float, target: float) -> Needed | None:
    """How many questions reach a target score that none of the points reaches, or None.

    points: by the number of questions; start: the score without training. None is given for fewer
    than three points, where the last one has learned nothing or less than the first, where a point
    reaches the target already, and where it is out of reach: more than FARTHEST times the questions
    of the last point, or a target of 1. Gaussian processes: Rasmussen and Williams (2006), ch. 2.
    """
    scores = [point.right / point.asked for point in points]
    if len(points) < FEWEST_POINTS or max(scores) >= target or not 0 < target < 1:
        return None
    if scores[-1] < max(start + LEARNED, scores[0]):
        return None
    x = np.log2([point.items / points[0].items for point in points])
    right = np.array([point.right for point in points]) + 0.5
    wrong = np.array([point.asked for point in points]) + 1 - right
    noise = np.diag(1 / right + 1 / wrong + ROUGH**2)
    ahead = x[-1] + np.arange(1, round(STEPS * math.log2(FARTHEST)) + 1 + 4 * STEPS) / STEPS
    gain = np.linalg.solve(_covariance(x, x) + noise, _covariance(x, ahead)).T
    mean = SLOPE * ahead + gain @ (np.log(right / wrong) - SLOPE * x)
    spread = np.diag(_covariance(ahead, ahead)) - (gain * _covariance(ahead, x)).sum(1) + ROUGH**2
    above, deviation = mean - math.log(target / (1 - target)), np.sqrt(spread)

    def first(enough: np.ndarray) -> float:
        reached = np.flatnonzero(enough)
        return points[0].items * 2 ** ahead[reached[0]] if len(reached) else math.inf

    found = first(above >= 0)
    if found > FARTHEST * points[-1].items:
        return None
    low, high = first(above >= -SURE * deviation), first(above >= SURE * deviation)
    return Needed(round(found), round(low), high)


def _covariance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Of the logits at two places, in doublings from the first point: level, slope and bends."""
    line = LEVEL_SD**2 + SLOPE_SD**2 * np.outer(one, other)
    return line + BEND**2 * np.minimum.outer(one, other)
