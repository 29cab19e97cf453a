"""What users see of forecast and probability: in the verdict, on terminals, by commands."""

from __future__ import annotations

import dataclasses
import json
from types import SimpleNamespace

import jsonschema
import pytest
from calibrations import DOCUMENT, calibration, case, forecast, score
from typer.testing import CliRunner

from loraprobe.cli import app
from loraprobe.errors import UsageError
from loraprobe.options import Options
from loraprobe.pipeline.systems import forecastable
from loraprobe.records import (
    Audit,
    Forecast,
    Gain,
    Measurement,
    Provenance,
    Retention,
    Score,
)
from loraprobe.report.answer import answer
from loraprobe.report.schema import json_schema
from loraprobe.routing import ROUTERS
from loraprobe.sample_size import Z95
from loraprobe.verdict import BaseShape, Evidence, judge
from loraprobe_lab import shipped_world


def by_code(verdict, code):
    return [reason for reason in verdict.reasons if reason.code == code]


def test_the_verdict_has_forecast_probability_and_prior_and_the_same_decision():
    found = judge(case(), calibration())
    plain = judge(case(forecasts=()), calibration())
    assert (found.decision, found.action) == (plain.decision, plain.action)
    assert found.decision == "inconclusive" and found.prior == 0.4
    largest = case().forecasts[1]  # the sum's
    assert dataclasses.replace(found.forecast, probability=None) == largest
    error = 0.1 / Z95
    said = calibration().probability(0.05, 0.3, error, baseline=0.3)
    assert found.forecast.probability == pytest.approx(said)
    assert found.probability is None  # nothing is decided, so no decision has a probability
    (told,) = by_code(found, "forecast")
    assert (told.value, told.threshold) == (0.3, 0.05)
    (told,) = by_code(found, "probability-measured-on")
    assert (told.value, told.threshold, told.severity) == (said, 0.9, "info")
    for figure in ("0.91", "0.12", "8 compositions", "12%", "no bases at all"):
        assert figure in told.message


@pytest.mark.parametrize(("gain", "agrees"), [(-0.3, True), (0.6, False)])
def test_what_failed_has_the_probability_of_failing_where_the_forecast_agrees(gain, agrees):
    scores = (*case().evaluation, score("uniform", "merge", 0.2))
    ends = (-0.2, 0.0)
    measured = Gain("t", "question", "uniform", "a", -0.1, ends, ends, 100)
    failed = case(gain, evaluation=scores, gains=(measured,), level="evaluation")
    found = judge(failed, calibration())
    fails = 1 - found.forecast.probability
    assert found.decision == "unlikely" and (fails > 0.5) == agrees
    assert found.probability == (pytest.approx(fails) if agrees else None)


def test_any_margin_has_its_probability():
    found = [judge(case(margin=m), calibration()) for m in (0.0, 0.05, 0.1, 0.3)]
    values = [v.forecast.probability for v in found]
    assert values == sorted(values, reverse=True) and len(set(values)) == 4
    assert [v.prior for v in found] == pytest.approx([0.6, 0.4, 0.35, 0.2])


def test_a_prior_that_is_set_is_the_one_that_is_told():
    low, high = (judge(case(prior=p), calibration()) for p in (0.1, 0.9))
    assert (low.prior, high.prior) == (0.1, 0.9)
    assert low.forecast.probability < high.forecast.probability


def test_what_has_to_be_beaten_is_the_better_form_of_the_best_baseline():
    steps = (score("base", "base", 0.6, "steps"), score("a", "adapter", 0.1, "steps"))
    scores = (*case().evaluation, *steps)
    assert case(evaluation=scores).baseline == pytest.approx(0.6)
    with_steps = judge(case(evaluation=scores), calibration())
    lower, higher = (v.forecast.probability for v in (with_steps, judge(case(), calibration())))
    assert lower < higher
    compositions = (*scores, score("uniform", "merge", 0.9))
    assert case(evaluation=compositions).baseline == pytest.approx(0.6)


def test_of_several_tasks_the_best_system_on_all_of_them_counts():
    rows = [score("base", "base", 0.1, task=t) for t in "tu"]
    rows += [score("a", "adapter", 0.9), score("a", "adapter", 0.1, task="u")]
    rows += [score("b", "adapter", 1.0, task="u")]  # was not asked the other task
    found = Evidence(evaluation=tuple(rows), level="base")
    assert found.baseline == pytest.approx(0.5)
    assert (found.kind_of_task.tasks, found.kind_of_task.metric) == (2, "exact_match")


@pytest.mark.parametrize(
    ("changes", "forecast_told"),
    [
        ({"evaluation": ()}, True),
        ({"base": None}, True),
        ({"base": BaseShape("llama", 576)}, True),
        ({"base": BaseShape("llama", None)}, True),
        ({"base": BaseShape("gemma2", 160)}, True),
        ({"diagnostics": (Measurement("norm_ratio", ("a", "b"), 9.0),)}, True),
        ({"forecasts": (forecast(0.9),)}, True),
        ({"evaluation": (*case().evaluation, *(score(n, "adapter", 0.1) for n in "cd"))}, True),
        ({"evaluation": (*case().evaluation, score("a", "adapter", 0.1, "hop1"))}, True),
    ],
    ids=[
        "no scores",
        "an unknown base",
        "a natural base",
        "a base of unknown size",
        "another architecture",
        "a ratio of norms",
        "a large forecast",
        "four adapters",
        "a hop",
    ],
)
def test_what_was_not_measured_has_no_probability(changes, forecast_told):
    found = judge(case(**changes), calibration())
    assert found.probability is None and found.prior is None
    assert len(by_code(found, "outside-calibration")) == 1
    assert (found.forecast is not None) == forecast_told == bool(by_code(found, "forecast"))
    assert not by_code(found, "probability-measured-on")


def evaluated(**changes):
    scores = (*case().evaluation, score("uniform", "merge", 0.2))
    return case(**{"evaluation": scores, "level": "evaluation", **changes})


def test_an_evaluation_without_a_forecast_says_so():
    found = judge(evaluated(forecasts=()), calibration())
    assert found.forecast is None and len(by_code(found, "outside-calibration")) == 1
    assert not by_code(judge(case(forecasts=()), calibration()), "outside-calibration")


def test_an_unmeasured_base_is_why_an_evaluation_has_no_forecast():
    found = judge(evaluated(forecasts=(), base=BaseShape("llama", 576)), calibration())
    assert "576" in by_code(found, "outside-calibration")[0].message
    asked = judge(evaluated(forecasts=(), base=BaseShape("llama", 576), prior=0.3), calibration())
    assert "576" not in by_code(asked, "outside-calibration")[0].message


def test_losses_have_no_probability():
    rows = tuple(dataclasses.replace(s, metric="answer_loss") for s in evaluated().evaluation)
    found = judge(evaluated(evaluation=rows, forecasts=()), calibration())
    assert "losses" in by_code(found, "outside-calibration")[0].message


def test_the_errors_told_are_those_of_the_kind_of_base():
    """A natural base has a probability once its errors were measured, with these errors."""
    own = {"where": "published models", "architectures": ["llama"], "cases": 60, "auroc": None,
           "brier": 0.27, "likely": 0, "wrong": None}  # fmt: skip
    both = calibration(accuracy={**DOCUMENT["accuracy"], "natural": own})
    found = judge(case(base=BaseShape("llama", 576)), both)
    (told,) = by_code(found, "probability-measured-on")
    assert "0.27" in told.message and "published models" in told.message
    assert "0.12" not in told.message and "AUROC" not in told.message
    small = judge(case(), both)
    assert small.forecast.probability == found.forecast.probability
    assert "0.12" in by_code(small, "probability-measured-on")[0].message


def test_no_forecast_exceeds_what_the_best_single_leaves():
    scores = (score("base", "base", 0.1), score("a", "adapter", 0.96), score("b", "adapter", 0.2))
    found = judge(case(0.3, evaluation=scores), calibration())
    assert found.forecast.gain == pytest.approx(0.04)
    assert found.forecast.ci95 == pytest.approx((0.04, 0.04))
    assert judge(case(0.3), calibration()).forecast.ci95 == pytest.approx((0.2, 0.4))
    losses = tuple(dataclasses.replace(s, metric="answer_loss") for s in scores)
    assert judge(case(0.3, evaluation=losses), calibration()).forecast.gain == 0.3


def test_several_tasks_have_a_forecast_of_the_mean_and_one_of_each_retention():
    rows = tuple(
        score(name, kind, value, task=t)
        for t in "tu"
        for name, kind, value in (("base", "base", 0.1), ("a", "adapter", 0.3))
    )
    kept = (Retention("t", 0.9, (0.8, 1.0)), Retention("u", 0.4, (0.2, 0.6)))
    one = forecast(0.2, "sum", retentions=kept)
    found = judge(case(evaluation=rows, tasks=2, forecasts=(one,)), calibration())
    told = by_code(found, "forecast-retention")
    assert [(r.value, r.threshold) for r in told] == [(0.9, 0.8), (0.4, 0.8)]
    assert found.forecast.gain == 0.2 and found.probability is None
    assert len(by_code(found, "outside-calibration")) == 1


def test_what_measured_sets_gained_stands_beside_an_open_verdict_alone():
    (told,) = by_code(judge(case(), calibration()), "measured-elsewhere")
    assert told.value == pytest.approx(0.3) and "20 adapter sets" in told.message
    (wide,) = by_code(judge(case(margin=0.25), calibration()), "measured-elsewhere")
    assert wide.value == pytest.approx(0.1)
    for other in ({"base": BaseShape("llama", 576)}, {"base": None}):
        assert not by_code(judge(case(**other), calibration()), "measured-elsewhere")
    ceiling = (score("base", "base", 0.99), score("a", "adapter", 1.0), score("b", "adapter", 1.0))
    ceiling = tuple(dataclasses.replace(s, ci95=(0.97, 1.0)) for s in ceiling)
    decided = judge(case(evaluation=ceiling), calibration())
    assert decided.decision == "unlikely" and not by_code(decided, "measured-elsewhere")
    few = [{**DOCUMENT["classes"][0], "sets": 9}]
    assert not by_code(judge(case(), calibration(classes=few)), "measured-elsewhere")


@pytest.mark.parametrize("level", ["weights", "probes"])
def test_without_a_task_nothing_is_said_of_probabilities(level):
    found = judge(case(level=level), calibration())
    assert found.probability is None and found.forecast is None
    assert not {"forecast", "outside-calibration"} & {r.code for r in found.reasons}


def test_the_answer_shows_forecast_and_probability_once():
    verdict = judge(case(), calibration())
    audit = Audit(
        "inspect", Provenance("0", "2", ()), evaluation=case().evaluation, verdict=verdict
    )
    told = [text for label, text in answer(audit).lines if label == "forecast"]
    assert len(told) == 1 and "+0.30 [0.20, 0.40]" in told[0]
    assert f"{verdict.forecast.probability:.2f}" in told[0]


# the command line


@pytest.mark.parametrize("prior", ["0", "1", "1.5", "-0.2", "nan"])
@pytest.mark.parametrize("command", ["inspect", "merge-and-eval"])
def test_a_prior_that_is_no_probability_is_refused_at_once(command, prior):
    result = CliRunner().invoke(app, [command, "nowhere", "nobody", f"--prior={prior}"])
    assert result.exit_code == 2 and not result.stdout
    assert "--prior" in result.stderr and f"not {float(prior)}" in result.stderr
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
    kinds = [{"tasks": 1, "hops": 2, "metric": "exact_match"}]
    document = {**DOCUMENT, "measured": {**DOCUMENT["measured"], "kinds": kinds}}
    (folder / "c.json").write_text(json.dumps(document))
    world = shipped_world()
    chosen = world.scenario("skill-and-facts")
    found = {}
    for command in ("inspect", "merge-and-eval"):
        call = [
            command,
            *(f"{name}={path}" for name, path in chosen.adapters.items()),
            "--base",
            str(world.path / "base"),
            "--task",
            str(chosen.tasks[0]),
            "--json",
            "--resume",
            "--limit",
            "30",
            "--threads",
            "1",
            "--prior",
            "0.3",
            "--margin",
            "0.1",
            "--calibration",
            str(folder / "c.json"),
        ]
        result = CliRunner().invoke(app, call, env={"LORAPROBE_CACHE": str(folder)})
        assert result.exit_code in (0, 1, 3), result.output
        found[command] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("command", ["inspect", "merge-and-eval"])
def test_commands_tell_a_probability_for_prior_and_margin(told, command):
    jsonschema.validate(told[command], json_schema())
    verdict = told[command]["verdict"]
    assert 0 < verdict["forecast"]["probability"] < 1 and verdict["prior"] == 0.3
    codes = [reason["code"] for reason in verdict["reasons"]]
    assert "forecast" in codes and "probability-measured-on" in codes
    assert verdict["evidence"] == ("pilot" if command == "inspect" else "evaluation")


def test_what_inspect_asked_is_not_asked_again(told):
    """The base and two adapters on 30 items of four parts, and the compositions on 30 of two."""
    first, second = told.values()
    asked = sum(row["n"] for row in first["evaluation"])
    assert asked >= 3 * 30 * 4 + 3 * 30 * 2
    assert f"{asked} results of an earlier run of this call were kept." in second["notes"]


def test_running_compositions_changes_neither_forecast_nor_probability(told):
    first, second = (document["verdict"] for document in told.values())
    assert first["forecast"] == second["forecast"]
    systems = [[row["system"] for row in doc["forecasts"]] for doc in told.values()]
    assert systems == [["uniform", "sum", "arrow"]] * 2


def test_the_probability_follows_from_the_document(told):
    document = told["merge-and-eval"]
    evidence = Evidence(
        forecasts=tuple(
            Forecast(**{**row, "ci95": tuple(row["ci95"])}) for row in document["forecasts"]
        ),
        evaluation=tuple(Score(**row) for row in document["evaluation"]),
        tasks=1,
    )
    best = max(evidence.forecasts, key=lambda one: one.gain)
    error = (best.ci95[1] - best.ci95[0]) / 2 / Z95
    said = calibration().probability(0.1, best.gain, error, evidence.baseline, 0.3)
    assert said == pytest.approx(document["verdict"]["forecast"]["probability"], abs=1e-9)
    assert document["verdict"]["forecast"]["system"] == best.system


def forecast_of(**options):
    adapters = [SimpleNamespace(name=name, whole={}) for name in "ab"]
    return forecastable(Options(**options), adapters)


def test_what_can_be_forecast_are_linear_merges_and_arrow_as_it_stands():
    arrow = ROUTERS.make("arrow")
    assert forecast_of() == {"uniform": (0.5, 0.5), "sum": (1.0, 1.0), "arrow": arrow}
    assert forecast_of(methods=("sum",), routers=()) == {"sum": (1.0, 1.0)}
    assert set(forecast_of(routers=("arrow:top_k=1",))) == {"uniform", "sum"}
    assert set(forecast_of(methods=("ties",))) == {"arrow"}
    assert set(forecast_of(systems=("uniform", "chain"))) == {"uniform"}
    assert forecast_of(systems=("chain",)) == {}
    weighted = {"methods": ("task_arithmetic",), "routers": ()}
    assert forecast_of(weights=(0.7, 0.3), **weighted) == {"task_arithmetic": (0.7, 0.3)}
    assert forecast_of(weights=(2.0, 0.3), **weighted) == {}
    assert set(forecast_of(rank=4)) == {"arrow"}
    assert forecast_of(balance="norm") == {}
