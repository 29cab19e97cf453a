"""The calibration: cases, fit, left-out groups, page, on planted cases and on the stored ones."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from calibrating import PLANTED, UNIT, case, synthetic
from scipy import integrate, stats
from typer.testing import CliRunner

from loraprobe.cli import app
from loraprobe.errors import UsageError
from loraprobe.verdict.calibration import calibration_of, shipped
from loraprobe_lab.calibration import run
from loraprobe_lab.calibration.cases import CaseError, read_cases, write_cases
from loraprobe_lab.calibration.fit import MARGINS, SHIPPED, Variant, fit

validation = pytest.importorskip("loraprobe_lab.calibration.validation")
from loraprobe_lab.calibration.report import calibration_figure  # noqa: E402

STORED = Path(__file__).parents[2] / "examples" / "calibration" / "cases.jsonl.gz"


@pytest.fixture(scope="module")
def cases():
    return synthetic()


@pytest.fixture(scope="module")
def stored():
    return read_cases(STORED)


@pytest.fixture(scope="module")
def without_base(cases):
    """Predictions for each base by a fit on the others."""
    return validation.left_out(cases, validation.LEFT_OUT["bases"], SHIPPED)


# cases


@pytest.mark.parametrize("name", ["cases.jsonl", "cases.jsonl.gz"])
def test_cases_survive_a_file(tmp_path, cases, name):
    write_cases(tmp_path / name, cases[:5])
    assert read_cases(tmp_path / name) == cases[:5]
    first = (tmp_path / name).read_bytes()
    write_cases(tmp_path / name, cases[:5])
    assert (tmp_path / name).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda row: row.pop("gain"), "gain"),
        (lambda row: row.update(method="max"), "method"),
        (lambda row: row.update(forecast="high"), "forecast"),
        (lambda row: row.update(adapters=2.5), "adapters"),
        (lambda row: row.update(adapters=True), "adapters"),
        (lambda row: row.update(colour="red"), "colour"),
        (lambda row: row.update(ci95=[0.5, 0.1]), "ci95"),
        (lambda row: row.update(baseline=None), "baseline"),
        (lambda row: row.update(gain=float("nan")), "gain"),
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


def test_files_that_are_no_cases_are_named(tmp_path):
    (tmp_path / "broken.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "text.jsonl").write_text("hello\n")
    for name in ("broken.jsonl.gz", "text.jsonl", "missing.jsonl"):
        with pytest.raises(CaseError, match=name):
            read_cases(tmp_path / name)


def test_a_case_is_undecided_where_its_interval_holds_the_margin():
    def label(low, high):
        return case(ci95=(low, high)).label(0.05)

    assert [label(0.06, 0.2), label(-0.1, 0.04), label(0.04, 0.2)] == [1, 0, None]


# the fit


def test_planted_coefficients_are_found():
    found = fit(synthetic(bases=40, sets=12))
    wanted = (PLANTED["intercept"], PLANTED["forecast"], PLANTED["baseline"])
    assert found.coefficients == pytest.approx(wanted, abs=0.08)
    assert found.spread == pytest.approx(PLANTED["spread"], rel=0.08)


def test_errors_of_measured_gains_are_not_taken_for_spread():
    """Gains measured with noise: a fit that is told of it finds the spread without it."""
    rng = random.Random(1)
    noisy = []
    for one in synthetic(bases=40, sets=12, spread=0.1):
        gain = one.gain + rng.gauss(0, 0.04)
        ci95 = (gain - 1.96 * 0.04, gain + 1.96 * 0.04)
        noisy.append(dataclasses.replace(one, gain=gain, ci95=ci95))
    told = fit(noisy).spread
    untold = fit([dataclasses.replace(c, ci95=(c.gain - 1e-6, c.gain + 1e-6)) for c in noisy])
    assert told < untold.spread / 1.3


def test_the_density_is_one_and_belongs_to_the_probability(cases):
    """Its integral above a margin is P(gain > margin), for gains measured without error."""
    fitted = fit(cases)
    one = case(forecast=0.2, error=0.05, baseline=0.3)

    def density(gain):
        at = dataclasses.replace(one, gain=gain, ci95=(gain, gain))
        return math.exp(fitted.log_density([at])[0])

    total, _ = integrate.quad(density, -60, 60, points=[0, 0.2], limit=800)
    assert total == pytest.approx(1, abs=2e-3)
    above, _ = integrate.quad(density, 0.05, 60, points=[0.2, 1], limit=800)
    assert fitted.probability([one], 0.05)[0] == pytest.approx(above, abs=2e-3)


def test_without_a_forecast_error_it_is_the_logistic_distribution(cases):
    fitted = fit(cases, Variant(("baseline",)))
    own = [dataclasses.replace(c, error=0.0) for c in cases[:30]]
    a, b, c = fitted.coefficients
    for margin in (-0.1, 0.0, 0.05, 0.4):
        wanted = [
            stats.logistic.sf(
                np.arcsinh(margin / UNIT),
                a + b * np.arcsinh(one.forecast / UNIT) + c * one.baseline,
                fitted.spread,
            )
            for one in own
        ]
        assert fitted.probability(own, margin) == pytest.approx(wanted, abs=1e-12)


def test_the_file_says_what_the_fit_says(cases):
    fitted = fit(cases)
    accuracy = {"small": {"where": "x", "architectures": ["llama"], "cases": 1, "auroc": 0.9,
                          "brier": 0.1, "likely": 0, "wrong": None}}  # fmt: skip
    read = calibration_of(json.loads(json.dumps(fitted.document(cases, "a test", accuracy))))
    for margin in MARGINS:
        said = [read.probability(margin, c.forecast, c.error, c.baseline) for c in cases]
        wanted = fitted.probability(cases, margin).tolist()
        assert said == pytest.approx(wanted, abs=2e-3)  # the file's coefficients are rounded
        gained = np.mean([c.gain > margin for c in cases])
        assert read.prior(margin) == pytest.approx(gained, abs=1e-4)
    most = max(cases, key=lambda c: c.forecast)
    assert not read.why_outside(most.forecast - 1e-3, most.adapters, most.kind)
    assert read.why_outside(most.forecast + 1e-3, most.adapters, most.kind)


def test_too_few_cases_are_said(cases):
    with pytest.raises(CaseError, match="at least 20 cases"):
        fit(cases[:19])


# left-out groups


def test_each_group_is_predicted_by_a_fit_on_the_others(cases):
    found = validation.left_out(cases, validation.LEFT_OUT["scenarios"], SHIPPED)
    for name in {c.scenario for c in cases}:
        rest = [c for c in cases if c.scenario != name]
        own = [i for i, c in enumerate(cases) if c.scenario == name]
        wanted = fit(rest).probability([cases[i] for i in own], 0.05)
        assert found.probability[0.05][own] == pytest.approx(wanted)


def test_planted_cases_are_foretold_and_shuffled_gains_are_not(cases, without_base):
    key, good = validation.LEFT_OUT["bases"], without_base
    assert good.figures().auroc > 0.85 and good.figures().brier < 0.17
    assert good.covered(0.5) == pytest.approx(0.5, abs=0.1)
    assert good.covered(0.9) == pytest.approx(0.9, abs=0.07)
    rng, shuffled = random.Random(0), [(c.gain, c.ci95) for c in cases]
    rng.shuffle(shuffled)
    mixed = [
        dataclasses.replace(c, gain=gain, ci95=ci95)
        for c, (gain, ci95) in zip(cases, shuffled, strict=True)
    ]
    assert abs(validation.left_out(mixed, key, SHIPPED).figures().auroc - 0.5) < 0.1


def test_a_single_group_has_none_to_leave_out():
    with pytest.raises(CaseError, match="base-00"):
        validation.left_out(synthetic(bases=1), validation.LEFT_OUT["bases"], SHIPPED)


def test_figures_by_hand():
    """Two scenarios: one ranked rightly, one with a pair in the wrong order; one undecided case."""
    rows = [
        ("s", 1, 0.95), ("s", 0, 0.1), ("t", 1, 0.6), ("t", 0, 0.92), ("t", 0, 0.2), ("t", None, 0),
    ]  # fmt: skip
    ends = {1: (0.2, 0.4), 0: (-0.2, 0.0), None: (0.0, 0.2)}
    own = [case(scenario=s, ci95=ends[label]) for s, label, _ in rows]
    found = validation.figures_of(own, np.array([p for *_, p in rows]))
    assert (found.decided, found.likely, found.wrong) == (5, 2, 0.5)
    assert found.auroc == pytest.approx((1.0 + 0.5) / 2)
    assert found.brier == pytest.approx(np.mean([0.05**2, 0.1**2, 0.4**2, 0.92**2, 0.2**2]))
    nothing = validation.figures_of(own[:1], np.array([0.5]))
    assert math.isnan(nothing.auroc) and math.isnan(nothing.wrong)


def test_a_bootstrap_interval_holds_its_figure(without_base):
    found = without_base
    low, high = validation.interval(found, lambda figures: figures.brier, draws=20, seed=0)
    assert low < found.figures().brier < high < low + 0.2
    again = validation.interval(found, lambda figures: figures.brier, draws=20, seed=0)
    assert again == (low, high)


# what ships


def test_the_shipped_calibration_is_the_fit_of_the_stored_cases(stored):
    fitted, ships = fit(stored), shipped()
    own = ships.coefficients
    assert (own.intercept, own.forecast, own.baseline) == pytest.approx(
        fitted.coefficients, abs=1e-3
    )
    assert own.spread == pytest.approx(fitted.spread, abs=1e-3)
    assert (ships.cases, ships.bases) == (len(stored), len({c.base for c in stored}))
    made = calibration_of(fitted.document(stored, "a test", {}))
    assert (made.classes, made.gained, made.figures) == (ships.classes, ships.gained, ships.figures)
    inside = [c for c in stored if abs(c.forecast) < 0.78]
    assert not any(ships.why_outside(c.forecast, c.adapters, c.kind) for c in inside)


def test_the_accuracy_that_ships_is_that_of_left_out_scenarios(stored):
    """On each kind of base apart; a kind with fewer than 40 decided cases has no accuracy."""
    found = validation.left_out(stored, validation.LEFT_OUT["scenarios"], SHIPPED)
    for kind in ("small", "natural"):
        own = found.figures(cases=[i for i, c in enumerate(stored) if c.base_kind == kind])
        told = shipped().accuracy.get(kind)
        assert (told is not None) == (own.decided >= 40)
        if told is not None:
            assert (told.cases, told.likely) == (own.decided, own.likely)
            assert told.auroc == pytest.approx(own.auroc, abs=2e-3)
            assert told.brier == pytest.approx(own.brier, abs=2e-3)


def test_the_classes_that_ship_are_shares_of_adapter_sets(stored):
    """The best of a set's compositions counts, once."""
    for told in shipped().classes:
        own = [c for c in stored if (c.base_kind, c.kind) == (told.base, told.kind)]
        best = {}
        for one in own:
            best[one.set_key] = max(one.gain, best.get(one.set_key, -1.0))
        assert told.sets == len(best) and told.bases == len({c.base for c in own})
        for margin, share in told.gained:
            assert share == pytest.approx(np.mean([g > margin for g in best.values()]), abs=1e-4)
    assert sum(told.sets for told in shipped().classes) == len({c.set_key for c in stored})


def test_lines_of_older_files_are_read(tmp_path, cases):
    """Without the fields that were added later."""
    path = tmp_path / "old.jsonl"
    row = dataclasses.asdict(cases[0])
    for name in ("model_type", "figures", "forecast_retention", "retention"):
        del row[name]
    path.write_text(json.dumps(row) + "\n")
    assert read_cases(path) == cases[:1]


def test_ranges_are_told_of_figures_that_all_cases_have(cases):
    some = [dataclasses.replace(c, figures={"norm_ratio": 1.0 + i}) for i, c in enumerate(cases)]
    told = fit(some).document(some, "a test", {})["measured"]["figures"]
    assert told == {"norm_ratio": [1.0, float(len(cases))]}
    assert fit(cases).document([*some, cases[0]], "a test", {})["measured"]["figures"] == {}


def test_one_coefficient_on_the_forecast_has_the_figures_that_were_published(stored):
    found = {what: validation.plain_logistic(stored, k) for what, k in validation.LEFT_OUT.items()}
    assert {what: round(f.brier, 2) for what, f in found.items()} == {
        "bases": 0.14,
        "scenarios": 0.16,
        "architectures": 0.14,
    }
    assert found["scenarios"].decided == 220


# page, figure, command


def test_the_command_writes_everything_from_stored_cases(tmp_path, monkeypatch):
    cases = synthetic(bases=4, sets=6)
    monkeypatch.setattr(validation, "VARIANTS", (Variant(), SHIPPED))
    measured, measure = [], validation.measure
    monkeypatch.setattr(
        validation, "measure", lambda *a: measured.append(measure(*a)) or measured[-1]
    )
    write_cases(tmp_path / "mine.jsonl", cases)
    output = tmp_path / "out"
    call = ["lab", "calibrate", "--cases", str(tmp_path / "mine.jsonl"), "-o", str(output),
            "--draws", "5"]  # fmt: skip
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(output / "calibration.json")
    assert {p.name for p in output.iterdir()} == {
        "calibration.json", "cases.jsonl.gz", "figure.svg", "report.md",
    }  # fmt: skip
    assert read_cases(output / "cases.jsonl.gz") == cases
    document = json.loads((output / "calibration.json").read_text())
    assert calibration_of(document).cases == len(cases)
    text = (output / "report.md").read_text()
    assert str(tmp_path) not in text and str(tmp_path) not in json.dumps(document)
    for words in ("two-hop", "keep-both", "architectures", "forecast + baseline (shipped)"):
        assert words in text
    again = calibration_figure(measured[0])
    assert (output / "figure.svg").read_text() == again


def test_no_cases_are_said_to_be_none(tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(CaseError, match="holds no case"):
        run.calibrate([], tmp_path, stored=tmp_path / "none.jsonl")


def test_a_missing_library_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UsageError, match=r"scikit-learn.*pip install 'loraprobe\[lab\]'"):
        run.calibrate([], Path("nowhere"))
