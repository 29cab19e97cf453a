"""The calibrated probability: its arithmetic against numpy, its limits, its file.

The calibrations here are made up by hand for the tests; none of them ships.
"""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
from calibrations import DOCUMENT, TERMS, calibration, case

import loraprobe.verdict
from loraprobe.errors import UsageError
from loraprobe.options import Options
from loraprobe.verdict import read_calibration
from loraprobe.verdict.calibrated import predict
from loraprobe.verdict.features import FAMILIES, FEATURES, features

NAMES = ("additive_gain", "hop_weakest", "hidden_crosstalk_max", "norm_log_ratio")


def expected(values, family):
    """The logit of DOCUMENT in numpy, written out by hand."""
    x = {name: np.nan if values.get(name) is None else values[name] for name in NAMES}
    gain = (x["additive_gain"] - 0.1) / 0.2
    share = np.clip(x["hop_weakest"], 0.01, 0.99)
    hop = (np.log(share / (1 - share)) - 0.3) / 1.7
    talk = np.sign(x["hidden_crosstalk_max"]) * np.log1p(np.abs(x["hidden_crosstalk_max"]))
    norm = (np.clip(x["norm_log_ratio"], 0.0, 1.0) - 0.5) / 0.4
    gone = np.isnan(x["hop_weakest"])
    parts = [
        1.5 * np.nan_to_num(gain),
        0.8 * (-0.5 if gone else hop),
        -0.9 * np.nan_to_num((talk - 0.2) / 0.6) * (family == "sum"),
        -0.3 * np.nan_to_num(norm),
        0.25 * ((1.0 if gone else 0.0) - 0.5) / 0.5,
        0.4 * (family == "router"),
    ]
    return -0.7 + sum(parts)


def test_the_logit_is_that_of_numpy_with_and_without_missing_values():
    rng, found = random.Random(0), calibration(support={})
    for _ in range(200):
        values = {name: rng.uniform(-1, 2) for name in NAMES if rng.random() > 0.3}
        for family in FAMILIES:
            said = found.predict(values, family)
            assert said.logit == pytest.approx(expected(values, family), abs=1e-12)
            assert said.probability == pytest.approx(1 / (1 + np.exp(-said.logit)), abs=1e-12)
            told = sum(part.logit for part in said.contributions)
            assert told == pytest.approx(said.logit + 0.7 - 0.4 * (family == "router"), abs=1e-12)


def test_a_logistic_regression_of_scikit_learn_is_evaluated_exactly():
    linear = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(1)
    x = rng.normal(size=(80, 2))
    y = (x @ [1.0, -2.0] + rng.normal(size=80) > 0).astype(int)
    model = linear.LogisticRegression().fit((x - x.mean(0)) / x.std(0), y)
    names = ("base_score", "cosine_max")
    terms = [
        {"feature": n, "mean": m, "scale": s, "coefficient": c}
        for n, m, s, c in zip(names, x.mean(0), x.std(0), model.coef_[0], strict=True)
    ]
    found = calibration(
        prior=float(y.mean()), support={},
        model={"kind": "logistic", "intercept": float(model.intercept_[0]), "terms": terms},
    )  # fmt: skip
    mine = [found.predict(dict(zip(names, row, strict=True)), "sum").probability for row in x]
    theirs = model.predict_proba((x - x.mean(0)) / x.std(0))[:, 1]
    assert np.allclose(mine, theirs, atol=1e-12)


@pytest.mark.parametrize("shape", ["linear", "step"])
def test_additive_tables_are_those_of_numpy(shape):
    knots, values = [-1.0, 0.0, 0.5, 2.0], [-2.0, -0.5, 0.25, 1.0] + [3.0] * (shape == "step")
    term = {"feature": "base_score", "family": None, "knots": knots, "values": values,
            "shape": shape, "missing": 0.125}  # fmt: skip
    found = calibration(support={}, model={"kind": "additive", "intercept": 0.5, "terms": [term]})
    for x in (-5.0, -1.0, -0.3, 0.0, 0.2, 0.5, 1.9, 2.0, 7.0):
        if shape == "linear":
            want = np.interp(x, knots, values)
        else:
            want = values[int(np.digitize(x, knots, right=True))]
        said = found.predict({"base_score": x}, "sum")
        assert said.logit == pytest.approx(0.5 + want, abs=1e-12)
    assert found.predict({}, "sum").logit == pytest.approx(0.625)


@pytest.mark.parametrize("prior", [0.01, 0.4, 0.5, 0.93])
def test_another_prior_multiplies_the_odds(prior):
    values = {"additive_gain": 0.3, "hop_weakest": 0.8}
    own, other = (calibration().predict(values, "average", p) for p in (None, prior))
    ratio = (prior / (1 - prior)) / (0.4 / 0.6)
    odds = own.probability / (1 - own.probability)
    assert other.probability / (1 - other.probability) == pytest.approx(odds * ratio)
    assert (own.prior, other.prior) == (0.4, prior)
    assert own.logit == other.logit


def test_large_logits_stay_finite():
    for sign in (1, -1):
        term = {"feature": "base_score", "coefficient": 5000.0 * sign}
        model = {"kind": "logistic", "intercept": 0.0, "terms": [term]}
        said = calibration(support={}, model=model).predict({"base_score": 1.0}, "sum")
        assert said.probability == (1.0 if sign > 0 else 0.0)


def test_what_must_not_be_missing_gives_no_probability():
    terms = [{**TERMS[0], "missing": None}]
    found = calibration(model={"kind": "logistic", "intercept": 0.0, "terms": terms})
    said = found.predict({}, "sum")
    assert (said.probability, said.supported, said.logit) == (None, False, None)
    assert "additive_gain" in said.why_not
    assert found.predict({"additive_gain": 0.0}, "sum").supported


def test_outside_a_range_the_feature_and_its_distance_are_named():
    said = calibration().predict({"additive_gain": 0.95, "base_score": 0.2}, "sum")
    assert said.probability is None and not said.supported and said.logit is not None
    assert "additive_gain" in said.why_not and "0.05 outside" in said.why_not
    assert "-0.6 to 0.9" in said.why_not
    assert calibration().predict({"additive_gain": 0.5, "base_score": 0.2}, "sum").supported


def test_far_from_the_centre_taken_together_is_outside_too():
    found, precision = calibration(), np.array(DOCUMENT["support"]["precision"])
    rng = np.random.default_rng(0)
    inside = 0
    for gain, base in rng.uniform([-0.6, -1.0], [0.9, 2.0], size=(200, 2)):
        apart = np.array([gain - 0.1, base - 0.2])
        square = apart @ precision @ apart
        said = found.predict({"additive_gain": gain, "base_score": base}, "sum")
        assert said.supported == (square <= 9.0)
        distance, _ = found.support.distance({"additive_gain": gain, "base_score": base})
        assert distance == pytest.approx(square)
        inside += said.supported
    assert 20 < inside < 180
    far = found.predict({"additive_gain": 0.1, "base_score": 1.5}, "sum")
    assert "base_score" in far.why_not and "16.9" in far.why_not and "9" in far.why_not
    assert found.support.distance({"base_score": None}) == (0.0, "additive_gain")


def test_the_most_promising_family_is_named():
    found = calibration(support={})
    each = {f: found.predict(features(case(), f), f).probability for f in FAMILIES}
    best = found.some_composition(case())
    assert best.family == max(each, key=each.get) == "router"
    assert best.probability == max(each.values())
    assert found.some_composition(case(), ("sum",)).family == "sum"
    only = calibration(families=["sum"], support={})
    assert only.some_composition(case()).family == "sum"
    none = only.some_composition(case(), ("average",))
    assert none.probability is None and "average" in none.why_not


def test_predict_uses_the_calibration_it_is_given_and_says_if_there_is_none(monkeypatch):
    values = {"additive_gain": 0.2}
    assert predict(values, "sum", 0.3, calibration()) == calibration().predict(values, "sum", 0.3)
    monkeypatch.setattr(loraprobe.verdict.calibrated, "shipped", lambda: None)
    said = predict(values, "sum")
    assert said.probability is None and "ships no calibration" in said.why_not


# the file


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"format": 2}, "format is not 1"),
        ({"prior": 1.0}, "out of range"),
        ({"margin": math.nan}, "out of range"),
        ({"families": ["soup"]}, "soup"),
        ({"model": {"kind": "forest", "intercept": 0, "terms": []}}, "forest"),
        ({"model": {"kind": "logistic", "intercept": 0, "terms": [{"feature": "base_score"}]}},
         "lacks 'coefficient'"),
        ({"model": {"kind": "logistic", "intercept": 0, "terms": [{**TERMS[0], "scale": 0}]}},
         "zero"),
        ({"model": {"kind": "logistic", "intercept": 0, "terms": [{**TERMS[0], "feature": "x"}]}},
         "not known: x"),
        ({"model": {"kind": "additive", "intercept": 0, "terms": [
            {"feature": "base_score", "knots": [1, 0], "values": [0, 1]}]}}, "do not rise"),
        ({"model": {"kind": "additive", "intercept": 0, "terms": [
            {"feature": "base_score", "knots": [0, 1], "values": [0]}]}}, "do not fit"),
        ({"support": {"features": ["base_score"], "center": [0, 1], "precision": [[1]]}},
         "do not fit its features"),
        ({"support": {"ranges": {"nonsense": [0, 1]}}}, "nonsense"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_calibration_is_one_sentence(tmp_path, change, what):
    path = tmp_path / "c.json"
    path.write_text(json.dumps({**DOCUMENT, **change}))
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
    with pytest.raises(UsageError, match=r"missing\.json"):
        Options(calibration=tmp_path / "missing.json")


def test_what_ships_if_anything_does_is_a_calibration():
    found = loraprobe.verdict.shipped()
    assert found is None or (0 < found.prior < 1 and found.terms)


def test_descriptions_are_phrases_that_stand_before_a_colon():
    for name, (description, group) in FEATURES.items():
        assert group in ("coverage", "singles", "weights", "probe", "task")
        assert description and description[-1] not in ".:" and len(description) <= 100, name
