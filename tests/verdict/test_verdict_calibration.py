"""From a forecast to a probability: against numerical integration, its limits, its file.

The calibrations here are made up by hand for the tests; none of them ships.
"""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
from calibrations import DOCUMENT, calibration
from scipy import integrate, stats

from loraprobe.errors import UsageError
from loraprobe.verdict import read_calibration
from loraprobe.verdict.calibration import shipped
from loraprobe.verdict.evidence import Kind

GIVEN = DOCUMENT["coefficients"]
ONE_TASK = Kind(1, 0, "exact_match")


def exceeds(margin, forecast, baseline):
    """P(gain > margin) by scipy's logistic distribution of t(gain)."""
    centre = (
        GIVEN["intercept"]
        + GIVEN["forecast"] * np.arcsinh(forecast / GIVEN["unit"])
        + GIVEN["baseline"] * baseline
    )
    return stats.logistic.sf(np.arcsinh(margin / GIVEN["unit"]), centre, GIVEN["spread"])


@pytest.mark.parametrize("margin", [-0.1, 0.0, 0.05, 0.3])
@pytest.mark.parametrize("forecast", [-0.4, 0.0, 0.1, 0.6])
def test_a_forecast_without_error_is_the_logistic_tail(margin, forecast):
    said = calibration().probability(margin, forecast, 0.0, 0.2)
    assert said == pytest.approx(exceeds(margin, forecast, 0.2), abs=1e-12)


@pytest.mark.parametrize("error", [0.02, 0.06, 0.12])
def test_an_uncertain_forecast_is_averaged_over_its_error(error):
    """Three points against the integral over a normal forecast: the rule is near, not exact."""

    def integrand(f, at):
        return exceeds(0.05, f, 0.2) * stats.norm.pdf(f, at, error)

    for at in (-0.2, 0.0, 0.05, 0.2, 0.5):
        ends = (at - 8 * error, at + 8 * error)
        exact, _ = integrate.quad(integrand, *ends, args=(at,), limit=200)
        assert calibration().probability(0.05, at, error, 0.2) == pytest.approx(exact, abs=0.03)


def test_more_forecast_more_probability_and_a_higher_margin_or_baseline_less():
    found = calibration()
    forecasts = [found.probability(0.05, f, 0.05, 0.2) for f in np.linspace(-0.5, 0.7, 25)]
    margins = [found.probability(m, 0.2, 0.05, 0.2) for m in np.linspace(-0.2, 0.5, 25)]
    baselines = [found.probability(0.05, 0.2, 0.05, b) for b in np.linspace(0, 1, 25)]
    assert all(np.diff(forecasts) > 0) and all(np.diff(margins) < 0)
    assert all(np.diff(baselines) < 0)


@pytest.mark.parametrize("prior", [0.01, 0.4, 0.5, 0.93])
@pytest.mark.parametrize(("margin", "share"), [(0.05, 0.4), (-1, 0.6), (0.15, 0.3), (0.9, 0.2)])
def test_another_prior_multiplies_the_odds_of_its_margin(prior, margin, share):
    found = calibration()
    assert found.prior(margin) == pytest.approx(share)
    own = found.probability(margin, 0.2, 0.05, 0.2)
    other = found.probability(margin, 0.2, 0.05, 0.2, prior)
    ratio = (prior / (1 - prior)) / (share / (1 - share))
    assert other / (1 - other) == pytest.approx(own / (1 - own) * ratio)


def test_extremes_stay_probabilities():
    document = {**GIVEN, "spread": 1e-4}
    found = calibration(coefficients=document)
    for forecast, wanted in ((0.7, 1.0), (-0.5, 0.0)):
        for prior in (None, 0.3):
            assert found.probability(0.0, forecast, 0.0, 0.0, prior) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("forecast", "adapters", "kind", "why"),
    [
        (0.71, 2, ONE_TASK, "forecast is +0.71"),
        (-0.6, 2, ONE_TASK, "forecast is -0.60"),
        (0.1, 5, ONE_TASK, "5 adapters"),
        (0.1, 2, Kind(2, 0, "exact_match"), "2 tasks"),
        (0.1, 2, Kind(1, 3, "exact_match"), "3 hops"),
        (0.1, 2, Kind(1, 0, "choice"), "choice"),
    ],
)
def test_what_was_not_measured_is_outside(forecast, adapters, kind, why):
    assert why in calibration().why_outside(forecast, adapters, kind)


def test_what_was_measured_is_inside():
    for forecast in (-0.5, 0.0, 0.7):
        assert calibration().why_outside(forecast, 3, ONE_TASK) == ""


# the file


def changed(*path, value):
    document = copy.deepcopy(DOCUMENT)
    place = document
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return document


def without(*path):
    document = copy.deepcopy(DOCUMENT)
    place = document
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    return document


@pytest.mark.parametrize(
    ("document", "what"),
    [
        (changed("format", value=1), "format is not 3"),
        (changed("coefficients", "spread", value=0), "not above 0"),
        (changed("coefficients", "unit", value=-1), "not above 0"),
        (changed("coefficients", "intercept", value=math.nan), "no finite number"),
        (changed("coefficients", "forecast", value="steep"), "no finite number"),
        (without("coefficients", "baseline"), "lacks 'baseline'"),
        (without("measured"), "lacks 'measured'"),
        (changed("gained", value=[[0.1, 0.5], [0.0, 0.6]]), "do not rise"),
        (changed("gained", value=[]), "do not rise"),
        (changed("gained", 0, value=[0.0, 1.0]), "between 0 and 1"),
        (changed("measured", "kinds", value=[{"tasks": 1}]), "missing"),
        (changed("accuracy", "small", value={"architectures": []}), "missing"),
        (changed("measured", "figures", value={"norm_ratio": [1.0, "many"]}), "no finite number"),
        (changed("classes", 0, "gained", value=[]), "do not rise"),
        (without("classes"), "lacks 'classes'"),
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
        assert 40 <= told.cases <= found.cases and told.architectures
        assert 0 < told.brier < 0.25 and 0.5 < told.auroc <= 1
