"""From a measured gain to a probability: against numerical integration, its limits, its file.

The calibrations here are made up by hand for the tests; none of them ships.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import operator

import numpy as np
import pytest
from calibrations import DOCUMENT, calibration
from scipy import integrate, stats

from loraprobe.defaults import PILOT_ITEMS
from loraprobe.errors import UsageError
from loraprobe.verdict import read_calibration
from loraprobe.verdict.probability import LEAST, shipped

GIVEN = DOCUMENT["coefficients"]
NOBODY = 1e6  # the standard error of a gain that nobody measured


def density(gain, baseline):
    """The density of gains by scipy's logistic distribution of t(gain), before the cut."""
    centre = GIVEN["intercept"] + GIVEN["baseline"] * baseline
    t = np.arcsinh(gain / GIVEN["unit"])
    return stats.logistic.pdf(t, centre, GIVEN["spread"]) / np.hypot(gain, GIVEN["unit"])


@pytest.mark.parametrize("margin", [-0.1, 0.0, 0.05, 0.3])
@pytest.mark.parametrize(
    ("gain", "error"), [(0.0, NOBODY), (0.2, 0.1), (-0.1, 0.05), (0.05, 0.2), (0.4, 0.03)]
)
def test_it_is_the_integral_of_spread_times_error(margin, gain, error):
    def product(at):
        return density(at, 0.2) * stats.norm.pdf(gain, at, error) * error

    # The integrals start at -1 and end at 0.8, because no score exceeds 1.
    points = [0.0, gain]
    above, _ = integrate.quad(product, margin, 0.8, points=points, limit=400)
    below, _ = integrate.quad(product, -1, margin, points=points, limit=400)
    said = calibration().probability(margin, 0.2, gain, error)
    assert said == pytest.approx(above / (above + below), abs=0.01)


def test_a_gain_rises_with_what_was_measured_and_falls_with_margin_and_baseline():
    found = calibration()
    found = found.coefficients
    gains = [found.exceeds(0.05, 0.2, g, 0.1) for g in np.linspace(-0.5, 0.7, 25)]
    margins = [found.exceeds(m, 0.2, 0.2, 0.1) for m in np.linspace(-0.2, 0.5, 25)]
    baselines = [found.exceeds(0.05, b, 0.1, 0.1) for b in np.linspace(0, 0.9, 25)]
    assert all(np.diff(gains) > 0) and all(np.diff(margins) < 0) and all(np.diff(baselines) < 0)


def test_more_items_say_more():
    sharp, rough = (calibration().probability(0.05, 0.2, 0.2, e) for e in (0.02, 0.1))
    assert rough < sharp and sharp > 0.99
    sharp, rough = (calibration().probability(0.05, 0.2, -0.1, e) for e in (0.02, 0.1))
    assert rough > sharp


def test_nothing_is_gained_over_a_perfect_baseline():
    for baseline, gain in ((1.0, 0.0), (0.97, 0.03)):
        assert calibration().coefficients.exceeds(0.05, baseline, gain, 0.1) == 0.0
        assert calibration().probability(0.05, baseline, gain, 0.1) == LEAST


@pytest.mark.parametrize("prior", [0.01, 0.4, 0.5, 0.93])
@pytest.mark.parametrize(("margin", "share"), [(0.05, 0.4), (-1, 0.6), (0.15, 0.3), (0.9, 0.2)])
def test_another_prior_multiplies_the_odds_of_its_margin(prior, margin, share):
    found = calibration()
    assert found.prior(margin) == pytest.approx(share)
    margin = max(margin, -0.5)  # all gains lie above -1
    own = found.probability(margin, 0.05, 0.2, 0.3)
    other = found.probability(margin, 0.05, 0.2, 0.3, prior)
    ratio = (prior / (1 - prior)) / (found.prior(margin) / (1 - found.prior(margin)))
    assert other / (1 - other) == pytest.approx(own / (1 - own) * ratio)


def test_extremes_stay_probabilities():
    found = calibration(coefficients={**GIVEN, "spread": 1e-4})
    for gain in (0.9, -0.9):
        for prior in (None, 0.3):
            assert 0.0 <= found.probability(0.05, 0.0, gain, 1e-9, prior) <= 1.0
    assert calibration().probability(0.0, 0.0, 1.0, 0.0) == 1 - LEAST
    assert calibration().probability(0.0, 0.0, -1.0, 0.0) == LEAST


# the file


def changed(*path, value):
    document = copy.deepcopy(DOCUMENT)
    functools.reduce(operator.getitem, path[:-1], document)[path[-1]] = value
    return document


def without(*path):
    document = copy.deepcopy(DOCUMENT)
    del functools.reduce(operator.getitem, path[:-1], document)[path[-1]]
    return document


@pytest.mark.parametrize(
    ("document", "what"),
    [
        (changed("format", value=1), "format"),
        (changed("coefficients", "spread", value=0), "greater than 0"),
        (changed("coefficients", "unit", value=-1), "greater than 0"),
        (changed("coefficients", "intercept", value=math.nan), "number"),
        (changed("coefficients", "baseline", value="steep"), "number"),
        (without("coefficients", "baseline"), "coefficients.baseline"),
        (without("measured"), "measured"),
        (changed("gained", value=[[0.1, 0.5], [0.0, 0.6]]), "do not rise"),
        (changed("gained", value=[]), "do not rise"),
        (changed("gained", 0, value=[0.0, 1.0]), "gained[0][1]"),
        (changed("accuracy", "small", value={"where": ""}), "accuracy.small.sets"),
        (changed("classes", 0, "gained", value=[]), "do not rise"),
        (without("classes"), "classes"),
    ],
)
def test_a_file_that_is_no_calibration_is_one_sentence(tmp_path, document, what):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(document))
    with pytest.raises(UsageError) as error:
        read_calibration(path)
    assert what in str(error.value) and str(path) in str(error.value)
    assert "lab calibrate" in str(error.value)


def test_files_that_cannot_be_read_are_one_sentence(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    for name in ("broken.json", "list.json", "missing.json"):
        with pytest.raises(UsageError, match=name):
            read_calibration(tmp_path / name)


def test_what_ships_has_at_most_eight_coefficients_and_tells_what_was_measured():
    found = shipped()
    assert len(vars(found.coefficients)) <= 8
    assert found.cases > 200 and "small" in found.accuracy
    for told in found.accuracy.values():
        assert 15 <= told.sets <= found.cases and told.items == PILOT_ITEMS
        assert 0 < told.brier < 0.25 and (told.auroc is None or 0.5 < told.auroc <= 1)
