"""The calibration: splits, selection, fit, export, measures, log, on cases with a planted truth."""

from __future__ import annotations

import dataclasses
import json
import math
import random

import numpy as np
import pytest
from calibrating import case, planted_logit, sigmoid, synthetic
from loraprobe.verdict.calibrated import calibration_of
from loraprobe.verdict.features import FEATURES
from loraprobe_lab.calibration.model import fit
from loraprobe_lab.calibration.newton import fit_many
from loraprobe_lab.calibration.ranked import fit_ranked
from loraprobe_lab.calibration.selection import Training, log_loss
from loraprobe_lab.calibration.terms import Candidate, candidates, fit_term

from loraprobe.errors import LoraprobeError, UsageError
from loraprobe_lab.calibration import baselines, experiment, measures, opening, splits
from loraprobe_lab.calibration.cases import (
    CaseError,
    Truth,
    cells,
    decided,
    read_cases,
    two_class,
    write_cases,
)
from loraprobe_lab.calibration.run import fit_and_tell

sklearn_metrics = pytest.importorskip("sklearn.metrics")


@pytest.fixture(scope="module")
def cases():
    return synthetic()


@pytest.fixture(scope="module")
def fitted(cases):
    return fit(splits.held_out_bases(cases).train)


# cases


def test_cases_survive_a_file(tmp_path, cases):
    kept = [*cases[:5], dataclasses.replace(cases[5], label=None, features={"hops": None})]
    write_cases(tmp_path / "cases.jsonl", kept)
    assert read_cases(tmp_path / "cases.jsonl") == kept


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda row: row.pop("truth"), "truth is missing"),
        (lambda row: row.pop("base"), "base is missing"),
        (lambda row: row.update(family="max"), "family is 'max'"),
        (lambda row: row.update(label=0.5), "label is 0.5"),
        (lambda row: row.update(colour="red"), "colour"),
        (lambda row: row["features"].update(hops="two"), "feature hops is 'two'"),
        (lambda row: row["truth"].update(ci95=[0.5, 0.1]), "ci95"),
        (lambda row: row["truth"].update(gain=None), "truth.gain"),
    ],
)
def test_a_bad_line_is_named(tmp_path, cases, change, says):
    row = json.loads(json.dumps(dataclasses.asdict(cases[0])))
    change(row)
    path = tmp_path / "cases.jsonl"
    write_cases(path, cases[:1])
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(CaseError, match=f"line 2: .*{says}"):
        read_cases(path)


def test_a_truth_is_undecided_where_its_interval_holds_the_margin():
    def label(low, high):
        return Truth(0.1, (low, high), 100, "cot", 0.5, 0.4, 0.0).label(0.05)

    assert [label(0.06, 0.2), label(-0.1, 0.04), label(0.04, 0.2)] == [1, 0, None]


def test_cells_count_every_case_and_tell_single_classes():
    labels = {"average": [1, 1, 0, 0, None], "sum": [0] * 9 + [1], "router": [1] * 8 + [0] * 2}
    found = [case(family=f, label=x) for f, row in labels.items() for x in row]
    rows = {cell.family: cell for cell in cells(found)}
    assert (rows["average"].successes, rows["average"].undecided) == (2, 1)
    assert rows["sum"].single_class and not rows["average"].single_class
    assert not rows["router"].single_class  # a fifth is enough
    assert two_class(found) == {("two-hop", "average"), ("two-hop", "router")}


# splits


def test_no_base_stands_on_two_sides_of_any_split(cases):
    natural = [case(base="smol", world=f"w{i}", kind="natural") for i in range(3)]
    every = [*cases, *natural]
    found = [splits.held_out_bases(every), *splits.every_base_once(every)]
    found += splits.held_out_scenario(every, "two-hop")
    found += [splits.held_out_architecture(every, a) for a in ("llama", "gpt2")]
    found.append(splits.natural_transfer(every))
    for split in found:
        assert split.train and split.test
        assert not {c.base for c in split.train} & {c.base for c in split.test}
        assert all(c.kind != "natural" for c in split.train)
    assert {c.kind for c in found[-1].test} == {"natural"}


def test_a_split_that_shares_a_base_is_refused():
    with pytest.raises(ValueError, match="facts-00"):
        splits.Split("bad", (case(),), (case(trial="t1"),))


def test_every_third_base_of_a_kind_and_architecture_is_held_out(cases):
    found = splits.held_out_bases(cases)
    assert {c.base for c in found.test} == {"facts-04", "facts-10", "facts-16"} | {
        "facts-05", "facts-11", "facts-17",
    }  # fmt: skip
    assert len(found.train) + len(found.test) == len(cases)


def test_a_held_out_scenario_is_measured_once_and_never_trained_on(cases):
    found = splits.held_out_scenario(cases, "two-hop")
    assert all(c.scenario != "two-hop" for split in found for c in split.train)
    tested = [c for split in found for c in split.test]
    wanted = [c for c in cases if c.scenario == "two-hop"]
    key = lambda c: (c.base, c.trial, c.method)  # noqa: E731
    assert sorted(tested, key=key) == sorted(wanted, key=key)


# measures


def scored(y, p, scenario=None, cluster=None, **more):
    n = len(y)
    values = {
        "headline": np.ones(n, bool), "supported": np.ones(n, bool), "likely": np.zeros(n, bool),
    } | more  # fmt: skip
    return measures.Scored(
        np.array(y, float), np.array(p, float),
        np.array(scenario if scenario is not None else ["s"] * n),
        np.array(cluster if cluster is not None else [str(i) for i in range(n)]), **values,
    )  # fmt: skip


def test_auroc_and_brier_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 200)
    p = np.round(rng.random(200), 1)  # many ties
    assert measures.auroc(y, p) == pytest.approx(sklearn_metrics.roc_auc_score(y, p), abs=1e-12)
    assert measures.brier(scored(y, p)) == pytest.approx(sklearn_metrics.brier_score_loss(y, p))
    assert log_loss(y, p) == pytest.approx(
        sklearn_metrics.log_loss(y, np.clip(p, 1e-6, 1 - 1e-6)), abs=1e-9
    )
    assert math.isnan(measures.auroc(np.ones(3), np.arange(3.0)))


def test_auroc_within_averages_scenarios_and_knows_nothing_across_them():
    y = [0, 1] * 20 + [1, 1, 1, 0] * 10
    scenario = ["a"] * 40 + ["b"] * 40
    p = [0.1] * 40 + [0.9] * 40  # knows the scenario alone
    found = scored(y, p, scenario)
    assert measures.auroc_within(found) == 0.5
    assert measures.auroc_pooled(found) > 0.5
    p = list(np.array(y[:40]) * 0.5) + [1 - 0.5 * v for v in y[40:]]
    assert measures.auroc_within(scored(y, p, scenario)) == pytest.approx(0.5 * (1 + 0))
    only_a = scored(y, p, scenario, headline=np.array([s == "a" for s in scenario]))
    assert measures.auroc_within(only_a) == 1.0


def test_expected_calibration_error_by_hand():
    y, p = [1, 0] * 50, [0.8] * 100
    assert measures.ece(scored(y, p)) == pytest.approx(0.3)
    rng = np.random.default_rng(1)
    p = rng.random(20_000)
    assert measures.ece(scored(rng.random(20_000) < p, p)) < 0.02


def test_calls_by_hand():
    likely = np.array([True, True, False, False])
    found = scored([1, 0, 1, 0], [0.9, 0.8, 0.4, 0.1], likely=likely,
                   supported=np.array([True, True, True, False]))  # fmt: skip
    assert measures.wrong_calls(found) == 0.5
    assert measures.called(found) == 0.5
    assert measures.answered(found) == 0.75
    assert math.isnan(measures.wrong_calls(scored([1, 0], [0.2, 0.1])))


def test_the_threshold_calls_as_many_as_stay_within_the_share_of_wrong_ones():
    p = np.array([0.9, 0.8, 0.7, 0.6, 0.5])

    def threshold(y, most_wrong, fewest=1):
        return measures.likely_threshold(np.array(y, float), p, most_wrong, fewest)

    assert threshold([1, 1, 1, 1, 0], 0.05) == 0.6
    assert threshold([1, 1, 1, 1, 0], 0.2) == 0.5
    assert threshold([0, 1, 1, 1, 1], 0.05) > 1
    assert threshold([0, 1, 1, 1, 1], 0.25) == 0.5
    assert threshold([1, 1, 0, 0, 0], 0.05, fewest=3) > 1  # a lucky few do not decide


def test_the_bootstrap_draws_whole_bases_and_widens_with_them():
    rng = np.random.default_rng(0)
    bases = [str(i // 10) for i in range(200)]
    for index in measures.draws(np.array(bases), 5, seed=1):
        drawn = np.bincount(index, minlength=200).reshape(20, 10)
        assert (drawn == drawn[:, :1]).all() and drawn.sum() == 200
    effect = np.repeat(rng.random(20), 10)  # all cases of a base end alike
    y = (effect > 0.5).astype(float)
    p = np.full(200, 0.5)
    together = measures.summary(scored(y, p, cluster=bases), 300)["ece"]
    apart = measures.summary(scored(y, p), 300)["ece"]
    assert together.high - together.low > 2 * (apart.high - apart.low)


def test_bootstrap_intervals_cover_a_known_brier_score():
    hits = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        p = rng.random(120)
        own = scored(rng.random(120) < p, p)
        samples = measures.draws(own.cluster, 100, seed)
        found = measures.with_interval(own, measures.brier, samples)
        hits += found.low <= 1 / 6 <= found.high
    assert hits >= 50


def test_a_paired_difference_is_narrower_than_its_sides():
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, 150)
    good = scored(y, np.clip(0.5 + 0.3 * (y - 0.5) + rng.normal(0, 0.2, 150), 0, 1))
    worse = dataclasses.replace(good, p=np.clip(good.p + rng.normal(0, 0.05, 150), 0, 1))
    samples = measures.draws(good.cluster, 300, 0)
    gap = measures.difference(good, worse, measures.auroc_within, samples)
    alone = measures.with_interval(good, measures.auroc_within, samples)
    assert gap.low < gap.value < gap.high
    assert gap.high - gap.low < alone.high - alone.low


# fit


def test_the_planted_features_are_found_and_no_others(fitted):
    assert {term.feature for term in fitted.chosen.terms} >= {"expected_gain", "norm_log_ratio"}
    assert len(fitted.chosen.terms) <= 4
    by = {t.feature: c for t, c in zip(fitted.chosen.terms, fitted.coefficients, strict=True)}
    assert by["expected_gain"] > 2 and by["norm_log_ratio"] < -1


def test_held_out_bases_are_predicted_as_well_as_the_truth_allows(cases, fitted):
    test = splits.held_out_bases(cases).test
    y = np.array([c.label for c in test])
    truth = np.array([sigmoid(planted_logit(c.features)) for c in test])
    p = fitted.predict(test)
    assert measures.auroc(y, p) > measures.auroc(y, truth) - 0.02
    assert np.mean((p - truth) ** 2) < 0.01
    assert measures.ece(scored(y, p, cluster=[c.base for c in test])) < 0.12


def test_permuted_labels_teach_nothing_about_held_out_bases(cases):
    rng = random.Random(0)
    found = []
    for _ in range(3):
        labels = [c.label for c in cases]
        rng.shuffle(labels)
        mixed = [dataclasses.replace(c, label=x) for c, x in zip(cases, labels, strict=True)]
        split = splits.held_out_bases(mixed)
        p = fit(split.train).predict(split.test)
        found.append(measures.auroc(np.array([c.label for c in split.test]), p))
    assert abs(np.mean(found) - 0.5) < 0.08


def test_a_feature_that_only_names_bases_is_not_chosen():
    """Bases differ in their success; a feature that is constant on a base predicts it in sample."""
    rng = random.Random(1)
    cases = []
    for c in synthetic(bases=12, sets=4, logit=lambda f: 0.0):
        number = int(c.base[-2:])
        features = {**c.features, "cosine_max": random.Random(number).random()}
        label = int(rng.random() < (0.9 if random.Random(number + 50).random() > 0.5 else 0.1))
        cases.append(dataclasses.replace(c, features=features, label=label))
    assert len(fit(cases).chosen.terms) <= 1


def test_what_tells_scenarios_apart_is_no_feature_of_the_model():
    told = [dataclasses.replace(c, features={**c.features, "hops": float(c.label)})
            for c in synthetic(bases=6, sets=4)]  # fmt: skip
    assert "hops" not in {term.feature for term in fit(told).chosen.terms}
    assert "hops" in {t.feature for t in fit(told, candidates(told, ["hops"])).chosen.terms}


def test_a_sign_against_theory_is_refused():
    turned = synthetic(bases=10, sets=4, logit=lambda f: -3 * f["expected_gain"])
    free = fit(turned, signs={})
    assert "expected_gain" in {term.feature for term in free.chosen.terms}
    bound = fit(turned, signs={"expected_gain": 1})
    for term, c in zip(bound.chosen.terms, bound.coefficients, strict=True):
        assert term.feature != "expected_gain" or c >= 0


def test_out_of_fold_probabilities_never_saw_their_base(cases):
    training = Training.of(decided(cases))
    for fitting, test in training.left_out():
        names = [np.array([c.base for c in training.cases])[mask] for mask in (fitting, test)]
        assert not set(names[0]) & set(names[1])


@pytest.mark.parametrize("strength", [0.1, 1.0, 30.0])
def test_many_fits_at_once_are_scikit_learns(strength):
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    X = rng.normal(size=(4, 60, 3))
    y = (X[0, :, 0] > 0).astype(float)  # the first design separates the classes
    for own, found in zip(X, fit_many(X, y, strength), strict=True):
        model = LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-10).fit(own, y)
        assert found == pytest.approx([model.intercept_[0], *model.coef_[0]], abs=1e-5)


def test_too_few_cases_are_one_sentence():
    with pytest.raises(CaseError, match="at least 10 successes"):
        fit([case(label=1), case(label=0)])


def test_terms_standardise_and_take_the_typical_for_what_is_missing():
    own = [case(features={"base_score": x}) for x in (0.0, 0.2, 1.0, None)]
    term = fit_term(Candidate("base_score", "logit"), own)
    column = term.column(own)
    assert column[3] == 0 and column[:3].mean() == pytest.approx(0)
    assert column[:3].std() == pytest.approx(1)
    only_sum = fit_term(Candidate("base_score", family="sum"), own)
    assert only_sum is None
    assert fit_term(Candidate("base_score"), [case(features={"base_score": 1.0})] * 3) is None


def test_candidates_offer_scales_that_suit(cases):
    scales = {(c.feature, c.transform) for c in candidates(cases) if c.family is None}
    assert ("base_score", "logit") in scales and ("cosine_max", "logit") not in scales


# export


def test_the_exported_file_says_what_scikit_learn_says(fitted, cases):
    from sklearn.linear_model import LogisticRegression

    document = json.loads(json.dumps(fitted.document({}, {}, 0.05)))
    read = calibration_of(document)
    X = np.column_stack([term.column(fitted.cases) for term in fitted.chosen.terms])
    y = [c.label for c in fitted.cases]
    model = LogisticRegression(C=fitted.chosen.strength, solver="newton-cholesky", tol=1e-8)
    wanted = model.fit(X, y).decision_function(X)
    for c, logit in zip(fitted.cases, wanted, strict=True):
        assert read.predict(c.features, c.family).logit == pytest.approx(logit, abs=1e-9)
    assert document["prior"] == pytest.approx(np.mean(y))
    typical = {t["feature"]: t.get("typical") for t in document["model"]["terms"]}
    assert typical["expected_gain"]["success"] > typical["expected_gain"]["failure"]


def test_an_export_that_says_something_else_is_not_written(fitted):
    wrong = dataclasses.replace(fitted, intercept=float("nan"))
    with pytest.raises((LoraprobeError, ValueError)):
        wrong.document({}, {}, 0.05)
    other = dataclasses.replace(fitted, coefficients=fitted.coefficients * 1.0)
    object.__setattr__(other, "logits", lambda cases: np.zeros(len(cases)))
    with pytest.raises(LoraprobeError, match="export is wrong"):
        other.document({}, {}, 0.05)


# support


def test_cases_like_the_training_cases_are_inside_and_others_are_not(fitted, cases):
    test = splits.held_out_bases(cases).test
    assert fitted.range.inside(test).mean() > 0.9
    far = [dataclasses.replace(c, features={**c.features, "expected_gain": 9.0}) for c in test[:5]]
    assert not fitted.range.inside(far).any()


def test_distances_are_mahalanobis():
    from scipy.spatial.distance import mahalanobis

    own = synthetic(bases=6, sets=3)
    found = fit(own)
    names = found.range.features
    for c in own[:10]:
        x = [c.features[name] for name in names]
        if all(found.range.transforms[n] == "identity" for n in names):
            wanted = mahalanobis(x, found.range.center, found.range.precision) ** 2
            assert found.range.distances([c])[0] == pytest.approx(wanted)


# everything


@pytest.fixture(scope="module")
def told(tmp_path_factory, cases):
    output = tmp_path_factory.mktemp("calibration")
    natural = synthetic(bases=1, sets=8, seed=9, kind="natural", architectures=("natural",))
    undecided = [dataclasses.replace(c, label=None) for c in cases[:7]]
    lines = []
    every = [*undecided, *cases[7:], *natural]
    fit_and_tell(every, output, "loraprobe lab calibrate -o x", draws=40, say=lines.append)
    return output, lines, every


def test_everything_is_written_and_loadable(told):
    output, lines, _ = told
    document = json.loads((output / "calibration.json").read_text())
    assert calibration_of(document).prior == document["prior"]
    assert document["accuracy"]["auroc"]["value"] > 0.8
    assert document["provenance"]["bases"] == 12
    assert (output / "figure.svg").read_text().startswith("<?xml")
    page = (output / "report.md").read_text()
    for words in ("scenario two-hop", "architecture gpt2", "natural bases", "always no",
                  "hand-weighted geometry", "expected_gain"):  # fmt: skip
        assert words in page
    assert any("looked at 1 time." in line for line in lines)


def test_every_opening_is_logged_and_counted(told):
    output, _, every = told
    log = output / opening.NAME
    assert set(opening.openings(log).values()) == {1}
    fit_and_tell(every, output, "again", draws=5)
    assert opening.openings(log)["held-out bases"] == 2
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert {row["command"] for row in rows} == {"loraprobe lab calibrate -o x", "again"}
    assert all(row["cases"] > 0 and row["time"] for row in rows)


def test_undecided_cases_are_counted_and_in_no_figure(cases):
    split = splits.held_out_bases(cases)
    base = split.test[0].base
    open_ = [dataclasses.replace(c, label=None) if c.base == base else c for c in cases]
    found = experiment.measure(open_, lambda name, own: None, count=5)
    assert found.headline.cases == len([c for c in split.test if c.base != base])


def test_baselines_know_only_what_they_are_named_after(cases):
    split = splits.held_out_bases(cases)
    test = decided(split.test)
    two = two_class(cases)
    found = {
        name: measures.auroc_within(experiment.scored_of(test, p(split.train, test), two))
        for name, p in baselines.predictors().items()
    }
    for name in ("always no", "scenario alone", "number of hops alone"):
        assert found[name] == pytest.approx(0.5)
    assert found["weights alone"] > 0.55  # norm_log_ratio is planted
    assert all(0.3 < value < 0.8 for value in found.values())


def test_a_single_base_has_none_to_hold_out():
    with pytest.raises(CaseError, match="at least three bases"):
        experiment.measure(synthetic(bases=2), lambda name, own: None)


def test_a_missing_library_is_one_sentence(monkeypatch):
    from loraprobe_lab.calibration import optional

    with pytest.raises(UsageError, match=r"pip install loraprobe\[lab\]"):
        optional.need("sklearn_that_is_not_there")


# all features on ranks


@pytest.fixture(scope="module")
def ranked(cases):
    return fit_ranked(splits.held_out_bases(cases).train)


def test_ranks_survive_outliers_and_say_what_the_file_says(ranked):
    read = calibration_of(json.loads(json.dumps(ranked.document({}, {}, 0.05))))
    odd = [dataclasses.replace(c, features={**c.features, "base_score": None, "additive_gain": 1e9})
           for c in ranked.cases[:20]]  # fmt: skip
    for c, logit in zip([*ranked.cases, *odd], ranked.logits([*ranked.cases, *odd]), strict=True):
        assert read.predict(c.features, c.family).logit == pytest.approx(logit, abs=1e-9)


def test_ranks_foretell_held_out_bases(ranked, cases):
    test = [c for c in splits.held_out_bases(cases).test if c.label is not None]
    y, p = np.array([c.label for c in test]), ranked.predict(test)
    assert measures.auroc(y, p) > 0.85
    assert np.mean((p - y) ** 2) < 0.15


def test_what_goes_against_theory_is_left_out(cases):
    train = splits.held_out_bases(cases).train
    turned = {"expected_gain": -1}
    names = {c.feature for c in fit_ranked(train, signs=turned).model.columns}
    assert "expected_gain" not in names
    assert "expected_gain" in {c.feature for c in fit_ranked(train, signs={}).model.columns}


def test_ranks_use_no_counts_and_no_geometry(ranked):
    groups = {FEATURES[c.feature].group for c in ranked.model.columns}
    assert groups and not groups & {"task", "weights"}


def test_permuted_labels_teach_ranks_nothing(cases):
    rng, found = random.Random(3), []
    for _ in range(4):
        labels = [c.label for c in cases]
        rng.shuffle(labels)
        mixed = [dataclasses.replace(c, label=x) for c, x in zip(cases, labels, strict=True)]
        split = splits.held_out_bases(mixed)
        test = [c for c in split.test if c.label is not None]
        found.append(measures.auroc(np.array([c.label for c in test]),
                                    fit_ranked(split.train).predict(test)))  # fmt: skip
    assert abs(np.mean(found) - 0.5) < 0.1
