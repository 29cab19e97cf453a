"""The calibrated probability: its arithmetic against numpy, its limits, and what users see of it.

The calibrations here are made up by hand for the tests; none of them ships.
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner

import loraprobe.verdict
from loraprobe.audit import Settings
from loraprobe.audit.systems import Workshop
from loraprobe.cli import app
from loraprobe.errors import UsageError
from loraprobe.lab import shipped_world
from loraprobe.records import Coverage, Measurement, Score
from loraprobe.report.card import model_card
from loraprobe.report.schema import json_schema
from loraprobe.report.terminal import verdict_panel
from loraprobe.verdict import Evidence, judge, read_calibration
from loraprobe.verdict.calibrated import calibration_of, predict
from loraprobe.verdict.features import FAMILIES, FEATURES, features

TERMS = [
    {"feature": "additive_gain", "family": None, "transform": "identity", "mean": 0.1,
     "scale": 0.2, "missing": 0.0, "coefficient": 1.5, "range": [-0.4, 0.9],
     "typical": {"failure": 0.01, "success": 0.42}},
    {"feature": "hop_weakest", "family": None, "transform": "logit", "mean": 0.3, "scale": 1.7,
     "missing": -0.5, "coefficient": 0.8},
    {"feature": "hidden_crosstalk_max", "family": "sum", "transform": "log1p", "mean": 0.2,
     "scale": 0.6, "missing": 0.0, "coefficient": -0.9},
    {"feature": "norm_log_ratio", "family": None, "transform": "clip", "mean": 0.5, "scale": 0.4,
     "missing": 0.0, "coefficient": -0.3, "range": [0.0, 1.0]},
    {"feature": "hop_weakest", "family": None, "transform": "missing", "mean": 0.5, "scale": 0.5,
     "missing": 0.0, "coefficient": 0.25},
    {"feature": "constant", "family": "router", "coefficient": 0.4},
]  # fmt: skip
DOCUMENT = {
    "format": 1,
    "provenance": {"made_by": "a test", "cases": 40},
    "prior": 0.4,
    "margin": 0.05,
    "families": ["average", "sum", "router"],
    "model": {"kind": "logistic", "intercept": -0.7, "terms": TERMS},
    "support": {
        "method": "mahalanobis",
        "features": ["additive_gain", "base_score"],
        "center": [0.1, 0.2],
        "precision": [[20.0, -4.0], [-4.0, 10.0]],
        "threshold": 9.0,
        "ranges": {"additive_gain": [-0.6, 0.9], "tasks": [1, 2]},
    },
    "likely_from": 0.8,
    "accuracy": {"where": "no bases at all", "auroc": {"value": 0.9, "ci95": [0.8, 0.95]},
                 "brier": 0.1},
}  # fmt: skip
NAMES = ("additive_gain", "hop_weakest", "hidden_crosstalk_max", "norm_log_ratio")


def calibration(**changes):
    return calibration_of({**json.loads(json.dumps(DOCUMENT)), **changes})


def score(system, kind, value, part="target", task="t"):
    ci = (max(0.0, value - 0.05), min(1.0, value + 0.05))
    return Score(system, kind, task, part, "exact_match", value, ci, 100)


def case(gain=0.3, **rest):
    """Base and two adapters on one task, and the additive score at both gates."""
    scores = (score("base", "base", 0.1), score("a", "adapter", 0.3), score("b", "adapter", 0.2))
    rows = tuple(
        Coverage("additive_score", "t", value, 60, None, ("a", "b"), baseline=0.3,
                 part="target", gate=gate)
        for gate, value in ((0.5, 0.3 + gain), (1.0, 0.3 + gain / 2))
    )  # fmt: skip
    made = {"evaluation": scores, "coverage": rows, "tasks": 1, "level": "base"}
    return Evidence(**{**made, **rest})


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


# the verdict


def by_code(verdict, code):
    return [reason for reason in verdict.reasons if reason.code == code]


def test_the_verdict_has_probability_prior_and_reasons_and_the_same_decision(monkeypatch):
    found = judge(case(), calibration())
    monkeypatch.setattr(loraprobe.verdict, "shipped", lambda: None)
    plain = judge(case())
    assert (found.decision, found.action) == (plain.decision, plain.action)
    assert found.decision == "inconclusive" and found.prior == 0.4
    values = features(case(), "router")
    said = calibration().predict(values, "router")
    assert found.probability == said.probability
    (told,) = by_code(found, "calibrated")
    assert (told.value, told.threshold, told.severity) == (said.probability, 0.8, "info")
    for part in (f"Probability {said.probability:.2f}", "more than 0.05", "prior 0.40", "routing",
                 "AUROC 0.90 [0.80, 0.95]", "Brier score 0.10", "no bases at all"):  # fmt: skip
        assert part in told.message
    assert "40 compositions" in told.source
    moved = by_code(found, "calibrated-feature")
    (gain,) = [r for r in moved if r.source.startswith("additive_gain,")]
    assert gain.value == pytest.approx(0.3) and "0.30" in gain.message
    assert "typically 0.42 where composing gained, 0.01 where it did not" in gain.message
    assert "up" in gain.message and "+1.50" in gain.source
    (hop,) = [r for r in moved if r.source.startswith("hop_weakest,")]
    assert "not measured" in hop.message and "down" in hop.message


def test_a_prior_that_is_set_is_the_one_that_is_told():
    low, high = (judge(case(prior=p), calibration()) for p in (0.1, 0.9))
    assert (low.prior, high.prior) == (0.1, 0.9) and low.probability < high.probability
    assert "prior 0.10" in by_code(low, "calibrated")[0].message


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"margin": 0.1}, "margin asked for is 0.1"),
        ({"families": ()}, "none of the compositions"),
        ({"evaluation": ()}, "not scored"),
        ({"coverage": (), "tasks": 1}, None),
    ],
)
def test_what_was_not_calibrated_has_no_probability(changes, why):
    found = judge(case(**changes), calibration())
    if why is None:  # a feature that may be missing is not what keeps a probability back
        assert found.probability is not None
        return
    assert found.probability is None and found.prior is None
    (outside,) = by_code(found, "outside-calibration")
    assert why in outside.message and outside.source


def test_losses_have_no_probability():
    rows = tuple(dataclasses.replace(s, metric="answer_loss") for s in case().evaluation)
    found = judge(case(evaluation=rows), calibration())
    assert "losses" in by_code(found, "outside-calibration")[0].message


@pytest.mark.parametrize("level", ["weights", "probes"])
def test_without_a_task_nothing_is_said_of_probabilities(level):
    found = judge(case(level=level), calibration())
    assert found.probability is None
    assert not [r for r in found.reasons if "calibrat" in r.code]


def test_the_panel_shows_the_probability_once_above_the_reasons():
    panel = verdict_panel(judge(case(), calibration())).renderable
    lines = panel.splitlines()
    assert lines[2].startswith("Probability 0.") and "(prior 0.40)" in lines[2]
    assert sum(line.count("prior 0.40") for line in lines) == 1
    assert any("[calibrated-feature: additive_gain" in line.replace("\\", "") for line in lines)


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
        Settings(calibration=tmp_path / "missing.json")


def test_what_ships_if_anything_does_is_a_calibration():
    found = loraprobe.verdict.shipped()
    assert found is None or (0 < found.prior < 1 and found.terms)


# the command line


@pytest.mark.parametrize("prior", ["0", "1", "1.5", "-0.2", "nan"])
@pytest.mark.parametrize("command", ["inspect", "merge-and-eval"])
def test_a_prior_that_is_no_probability_is_refused_at_once(command, prior):
    result = CliRunner().invoke(app, [command, "nowhere", "nobody", f"--prior={prior}"])
    assert result.exit_code == 2 and not result.stdout
    assert "--prior is the share" in result.stderr and f"not {float(prior)}" in result.stderr
    with pytest.raises(UsageError, match="prior"):
        Settings(prior=float(prior))


def test_a_calibration_that_is_none_is_refused_at_once():
    call = ["inspect", "nowhere", "nobody", "--calibration", "missing.json"]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 2 and "missing.json" in result.stderr


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """`inspect` and `merge-and-eval` on the shipped world with the calibration of these tests."""
    folder = tmp_path_factory.mktemp("told")
    document = {**DOCUMENT, "support": {}}
    (folder / "c.json").write_text(json.dumps(document))
    world = shipped_world()
    chosen = world.scenario("skill-and-facts")
    found = {}
    for command in ("inspect", "merge-and-eval"):
        call = [command, *(f"{name}={path}" for name, path in chosen.adapters.items()),
                "--base", str(world.path / "base"), "--task", str(chosen.tasks[0]), "--json",
                "--limit", "12", "--threads", "1", "--prior", "0.3",
                "--calibration", str(folder / "c.json")]  # fmt: skip
        result = CliRunner().invoke(app, call, env={"LORAPROBE_CACHE": str(folder)})
        assert result.exit_code in (0, 1, 3), result.output
        found[command] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("command", ["inspect", "merge-and-eval"])
def test_commands_tell_a_probability_for_the_prior_that_is_set(told, command):
    jsonschema.validate(told[command], json_schema())
    verdict = told[command]["verdict"]
    assert 0 < verdict["probability"] < 1 and verdict["prior"] == 0.3
    codes = [reason["code"] for reason in verdict["reasons"]]
    assert "calibrated" in codes and "calibrated-feature" in codes
    assert verdict["evidence"] == ("base" if command == "inspect" else "evaluation")
    if command == "inspect":
        assert verdict["decision"] != "likely"


def test_running_compositions_changes_no_probability(told):
    first, second = (document["verdict"]["probability"] for document in told.values())
    assert first == pytest.approx(second, abs=1e-12)


def test_the_probability_follows_from_the_document(told):
    document = told["merge-and-eval"]
    evidence = Evidence(
        diagnostics=tuple(
            Measurement(**{**row, "adapters": tuple(row["adapters"])})
            for row in document["diagnostics"]
        ),
        coverage=tuple(
            Coverage(**{**row, "adapters": tuple(row["adapters"])}) for row in document["coverage"]
        ),
        evaluation=tuple(Score(**row) for row in document["evaluation"]),
        tasks=1,
    )
    said = calibration(support={}).some_composition(evidence, FAMILIES, 0.3)
    assert said.probability == pytest.approx(document["verdict"]["probability"], abs=1e-9)


def families(**options):
    adapters = [SimpleNamespace(name=name) for name in "ab"]
    return Workshop(adapters, Settings(**options)).families()


def test_families_are_those_of_the_compositions_asked_for():
    assert families() == FAMILIES
    assert families(methods=("sum",), routers=()) == ("sum",)
    assert families(routers=("arrow:top_k=1",)) == ("average", "sum")
    assert families(methods=("ties",)) == ("router",)
    assert families(systems=("uniform", "chain")) == ("average",)
    assert families(systems=("chain",)) == ()
    assert families(methods=("task_arithmetic",), weights=(0.7, 0.3), routers=()) == ("average",)
    assert families(methods=("task_arithmetic",), weights=(2.0, 0.3), routers=()) == ()
    assert families(rank=4) == ("router",)


def test_the_model_card_tells_the_probability():
    card = model_card(
        name="m", base_model="gpt2", sources=(), method="uniform", space="full", rank="4",
        weights=None, compression_error=0.0, rounding_error=0.0, dtype="float32", seed=0,
        verdict=judge(case(), calibration()),
    )  # fmt: skip
    assert "- Probability 0." in card and "(prior 0.40)" in card


def test_descriptions_are_phrases_that_stand_before_a_colon():
    for name, (description, group) in FEATURES.items():
        assert group in ("coverage", "singles", "weights", "probe", "task")
        assert description and description[-1] not in ".:" and len(description) <= 100, name
