"""What users see of the calibrated probability: in the verdict, on terminals, by commands."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import jsonschema
import pytest
from calibrations import DOCUMENT, calibration, case
from typer.testing import CliRunner

import loraprobe.verdict
from loraprobe.cli import app
from loraprobe.errors import UsageError
from loraprobe.options import Options
from loraprobe.pipeline.systems import calibrated_families
from loraprobe.records import Coverage, Measurement, Score
from loraprobe.report.card import model_card
from loraprobe.report.schema import json_schema
from loraprobe.report.terminal import verdict_panel
from loraprobe.verdict import Evidence, judge
from loraprobe.verdict.features import FAMILIES, features
from loraprobe_lab import shipped_world


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
    # a feature that was not measured is no reason that a reader can use
    assert not [r for r in moved if r.source.startswith("hop_weakest,")]


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


# the command line


@pytest.mark.parametrize("prior", ["0", "1", "1.5", "-0.2", "nan"])
@pytest.mark.parametrize("command", ["inspect", "merge-and-eval"])
def test_a_prior_that_is_no_probability_is_refused_at_once(command, prior):
    result = CliRunner().invoke(app, [command, "nowhere", "nobody", f"--prior={prior}"])
    assert result.exit_code == 2 and not result.stdout
    assert "--prior is the share" in result.stderr and f"not {float(prior)}" in result.stderr
    with pytest.raises(UsageError, match="prior"):
        Options(prior=float(prior))


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
    adapters = [SimpleNamespace(name=name, whole={}) for name in "ab"]
    return calibrated_families(Options(**options), adapters)


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
