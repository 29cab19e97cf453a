"""On how many questions a target is reached: the forecast against an oracle, and where none is."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from loraprobe.extensions.train import forecast
from loraprobe.extensions.train.forecast import Point, needed


def curve(*rights, asked=100, first=8):
    return [Point(first << k, right, asked) for k, right in enumerate(rights)]


def oracle(points, target, ahead):
    """The probability that a training on so many questions reaches the target.

    A level, a slope and a bend for each tenth of a doubling are weights of a linear regression
    whose errors and weights are normal: the posterior of weights, and not the process of logits.
    """
    steps = np.arange(1, 200) / 10

    def features(items):
        x = math.log2(items / points[0].items)
        bends = np.clip(x - (steps - 0.1), 0, 0.1) * math.sqrt(10)
        return np.array([1, x, *bends])

    sd = [forecast.LEVEL_SD, forecast.SLOPE_SD, *[forecast.BEND] * len(steps)]
    prior, mean = np.diag(1 / np.square(sd)), np.zeros(len(sd))
    mean[1] = forecast.SLOPE
    rows = np.array([features(point.items) for point in points])
    right = np.array([point.right + 0.5 for point in points])
    wrong = np.array([point.asked - point.right + 0.5 for point in points])
    precision = np.diag(1 / (1 / right + 1 / wrong + forecast.ROUGH**2))
    spread = np.linalg.inv(prior + rows.T @ precision @ rows)
    weights = spread @ (prior @ mean + rows.T @ precision @ np.log(right / wrong))
    new = features(ahead)
    deviation = math.sqrt(new @ spread @ new + forecast.ROUGH**2)
    return norm.cdf((new @ weights - math.log(target / (1 - target))) / deviation)


@pytest.mark.parametrize("rights", [(10, 25, 45), (5, 12, 20, 41), (30, 31, 52)])
def test_number_and_interval_are_where_a_regression_crosses_a_half_and_the_tails(rights):
    points = curve(*rights)
    found = needed(points, 0.0, 0.7)
    for items, probability in ((found.low, 0.1), (found.items, 0.5), (found.high, 0.9)):
        assert oracle(points, 0.7, items) == pytest.approx(probability, abs=0.03)


@pytest.mark.parametrize(
    ("points", "start", "target"),
    [
        (curve(0, 0, 0), 0.0, 0.5),  # nothing is learned
        (curve(20, 21, 20), 0.2, 0.8),  # no more than without training
        (curve(20, 22, 25), 0.2, 0.3),  # hardly more
        (curve(60, 45, 30), 0.0, 0.8),  # less and less
        (curve(20, 55, 81), 0.0, 0.8),  # reached already
        (curve(20, 82, 60), 0.0, 0.8),  # reached on the way
        (curve(20, 40), 0.0, 0.8),  # two points make no curve
        (curve(12, 12, 13), 0.0, 0.9),  # far out of reach
        (curve(20, 40, 60), 0.0, 1.0),  # no finite logit
        ([], 0.0, 0.8),
    ],
)
def test_nothing_is_said_where_nothing_can_be_told(points, start, target):
    assert needed(points, start, target) is None


@given(
    st.lists(st.integers(0, 100), min_size=3, max_size=5),
    st.floats(0.2, 0.9),
    st.sampled_from([1, 4]),
)
def test_the_number_lies_in_its_interval_and_beyond_the_points(rights, target, times):
    found = needed(curve(*rights), 0.0, target)
    if found:
        last = 8 << len(rights) - 1
        assert last <= found.low <= found.items <= found.high
        assert found.items <= forecast.FARTHEST * last
        scaled = needed(curve(*rights, first=8 * times), 0.0, target)
        assert scaled.items == pytest.approx(times * found.items, abs=times)


def test_more_answers_and_more_points_tell_more():
    few, many = (needed(curve(4 * k, 9 * k, 18 * k, asked=40 * k), 0, 0.8) for k in (1, 20))
    assert many.high / many.low < few.high / few.low
    long = needed(curve(160, 360, 720, 1080, asked=1600), 0, 0.8)
    assert long.high / long.low < many.high / many.low
    assert needed(curve(10, 30, 60), 0, 0.8).items < needed(curve(10, 25, 45), 0, 0.8).items
