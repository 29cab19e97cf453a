"""The items that a decision needs, against simulated runs of that many items."""

import numpy as np
import pytest

from loraprobe.evaluation.statistics import estimate
from loraprobe.records.measurements import Z95, Estimate, averaged, items_needed, pooled

MARGIN, RUNS = 0.05, 400


def interval(x):
    """Mean, standard error, and 95 % interval of paired differences."""
    found = estimate(np.asarray(x, dtype=float)[:, None], np.arange(len(x)))
    low, high = (float(end[0]) for end in found.interval(found.critical(0.95)))
    return float(found.difference[0]), float(found.se[0]), low, high


@pytest.mark.parametrize(
    ("better", "worse", "items"), [(10, 5, 50), (8, 8, 80), (10, 4, 40), (18, 6, 60)]
)
def test_four_of_five_runs_decide_with_the_items_needed_and_two_with_half(better, worse, items):
    pilot = np.repeat([1.0, -1.0, 0.0], [better, worse, items - better - worse])
    mean, se, low, high = interval(pilot)
    assert low < MARGIN < high, "undecided"
    needed = items_needed(items, mean - MARGIN, se)
    rng = np.random.default_rng(0)

    def decided(n):
        """The share of runs of n items that decide, where the pilot's figures are the truth."""
        found = estimate(rng.choice(pilot, (n, RUNS)), np.arange(n))
        low, high = found.interval(found.critical(0.95))
        return np.mean(low > MARGIN if mean > MARGIN else high < MARGIN)

    error = 4 * (0.25 / RUNS) ** 0.5
    assert decided(needed) == pytest.approx(0.8, abs=error)
    assert decided(needed // 2) == pytest.approx(0.5, abs=error + 0.02)


def test_figures_by_hand():
    # (1.96 + 0.84) standard errors of 0.05 have to shrink to 0.05: (2.8 / 1)^2 times the items
    assert items_needed(100, 0.05, 0.05) == 785
    assert items_needed(100, -0.05, 0.05) == 785
    assert items_needed(100, 0.05, 0.05, critical=2 * Z95) == 2268
    assert items_needed(100, 0.5, 0.05) == 101
    assert items_needed(1, 0.1, 0.1, critical=float("inf")) is None


@pytest.mark.parametrize(
    ("n", "distance", "se"),
    [
        (50, 0.0, 0.1),
        (50, 1e-5, 0.1),
        (50, 1e-200, 0.1),
        (50, 0.1, float("inf")),
        (50, 0.1, 0.0),
        (0, 0.1, 0.1),
    ],
)
def test_no_number_is_named_where_none_decides(n, distance, se):
    assert items_needed(n, distance, se) is None


@pytest.mark.parametrize(
    ("figures", "threshold", "items", "standing"),
    [
        # The half-width has to shrink to 1 / 2, and to 1.96 / (1.96 + 0.84) of that for the power.
        ((0.1, 0.0, 0.2), 0.05, 818, "inconclusive"),
        ((0.05, -0.05, 0.15), 0.05, None, "inconclusive"),
        ((0.75, 0.65, 0.90), 0.8, 1839, "inconclusive"),
        ((0.8, 0.7, 0.9), 0.8, None, "inconclusive"),
        ((0.3, 0.2, 0.4), 0.15, 101, "likely"),
        ((0.0, -0.1, 0.1), 0.15, 101, "unlikely"),
    ],
)
def test_an_estimate_against_a_threshold(figures, threshold, items, standing):
    found = Estimate(*figures, 100, 100)
    assert found.exceeds(threshold) == standing
    if standing == "inconclusive":
        assert found.items_for(threshold) == items
    assert (-found).exceeds(-threshold) == {"likely": "unlikely", "unlikely": "likely"}.get(
        standing, standing
    )


def test_means_of_several_tasks():
    one, other = Estimate(0.2, 0.17, 0.26, 50, 50), Estimate(0.4, 0.36, 0.48, 60, 20)
    mean, wide = pooled([one, other]), averaged([one, other])
    assert mean.value == wide.value == pytest.approx(0.3)
    assert (mean.low, mean.high) == pytest.approx((0.275, 0.35))  # roots of sums of squares, halved
    assert (wide.low, wide.high) == pytest.approx((0.265, 0.37))
    assert (mean.n, mean.clusters) == (110, 70)
    assert pooled([one]) == one


def test_the_difference_of_two_figures_is_that_of_independent_ones():
    difference = Estimate(0.5, 0.47, 0.54, 50, 50) - Estimate(0.2, 0.17, 0.24, 60, 60)
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.3, 0.25, 0.35))


def test_a_difference_is_that_of_newcombes_worked_example():
    # Newcombe (1998), table II, example a: 56/70 - 48/80, method 10: 0.0524 to 0.3339
    known = Estimate(0.8, 0.69156, 0.87695, 70, 70)
    difference = known - Estimate(0.6, 0.49042, 0.70035, 80, 80)
    assert difference.value == pytest.approx(0.2)
    assert (difference.low, difference.high) == pytest.approx((0.0524, 0.3339), abs=2e-4)
