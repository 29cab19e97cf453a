"""`screen --own`: the forecast against least squares and all subsets, and the command."""

import itertools
import json
import shutil

import making
import numpy as np
import pytest
from merges import merge

import loraprobe
from loraprobe.demo import shipped_world
from loraprobe.extensions.screen.defaults import GATES
from loraprobe.extensions.screen.together.forecast import Curve, MergeForecast, inner_products

SHAPES = {"layers.0.q": (12, 10), "layers.0.v": (8, 10)}


def flat(adapter):
    return np.concatenate([adapter.modules[p].delta().double().flatten() for p in SHAPES])


def straight(factor=1.0, items=40):
    """An adapter whose retention alone is `factor` times the gate, at most 1."""
    right = {g: np.arange(items) < round(items * min(1, factor * g)) for g in GATES}
    return Curve.of(np.zeros(items), np.ones(items), {g: v * 1.0 for g, v in right.items()})


def test_shares_are_the_coefficients_of_each_update_in_the_uniform_merge():
    adapters = [making.random_adapter(name, SHAPES, seed=at) for at, name in enumerate("abc")]
    forecast = MergeForecast({a.name: straight() for a in adapters}, inner_products(adapters))
    for group in (("a", "b"), ("c", "a"), ("a", "b", "c")):
        chosen = [adapters["abc".index(name)] for name in group]
        merged = flat(merge(chosen, "uniform").adapter)
        expected = [np.linalg.lstsq(flat(a)[:, None], merged, rcond=None)[0][0] for a in chosen]
        assert forecast.shares(group) == pytest.approx(expected, rel=1e-5)


def test_what_partners_share_counts_and_what_is_orthogonal_does_not():
    alike, apart = np.ones((2, 2)), np.diag([1.0, 9.0])
    curves = {"a": straight(), "b": straight()}
    assert MergeForecast(curves, alike).kept(("a", "b")) == pytest.approx([1.0, 1.0])
    assert MergeForecast(curves, apart).kept(("a", "b")) == pytest.approx([0.5, 0.5])
    assert MergeForecast(curves, -alike + 2 * np.eye(2)).kept(("a", "b")) == pytest.approx(
        [0.0, 0.0]
    )


def test_a_curve_is_relative_to_base_and_adapter_alone():
    base, alone = np.repeat([1.0, 0.0], [10, 30]), np.repeat([1.0, 0.0], [30, 10])
    half = np.repeat([1.0, 0.0], [20, 20])
    curve = Curve.of(base, alone, {0.5: half})
    assert [curve.at(share) for share in (0, 0.25, 0.5, 0.75, 1, 3)] == pytest.approx(
        [0, 0.25, 0.5, 0.75, 1, 1]
    )
    low, high = curve.interval(0.5)
    assert low < 0.5 < high
    many = Curve.of(*(np.tile(one, 25) for one in (base, alone)), {0.5: np.tile(half, 25)})
    assert many.interval(0.5)[0] > low and many.interval(0.5)[1] < high


@pytest.mark.parametrize("least", [0.3, 0.5, 0.8])
def test_groups_are_the_largest_of_all_subsets(least):
    rng = np.random.default_rng(5)
    updates = rng.normal(size=(6, 4))
    inner = updates @ updates.T + np.diag(rng.uniform(0, 3, 6))
    names = "abcdef"
    factors = rng.uniform(0.5, 3, 6)
    forecast = MergeForecast(dict(zip(names, map(straight, factors), strict=True)), inner)
    every = [g for n in range(2, 7) for g in itertools.combinations(names, n)]
    fine = [group for group in every if min(forecast.kept(group)) >= least]
    found = forecast.groups(least, 3)
    if fine:
        assert len(found[0]) == max(map(len, fine))
        best = max(min(forecast.kept(g)) for g in fine if len(g) == len(found[0]))
        assert min(forecast.kept(found[0])) == best
    else:
        best = max(min(forecast.kept(g)) for g in every if len(g) == 2)
        assert [min(forecast.kept(group)) for group in found] == [best]


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def world(monkeypatch):
    """The shipped world, as the working directory: two adapters with a skill with lists each."""
    monkeypatch.chdir(shipped_world().path)


OWN = ("--own", "count=tasks/count.jsonl", "--own", "last=tasks/last.jsonl")
CALL = ("screen", "adapters/count", "adapters/last", "--base", "base", "--threads", "1")


def test_the_best_group_is_composed_and_asked_other_items(world):
    found = making.call(*CALL, *OWN, "--json")
    document = json.loads(found.stdout)
    assert found.exit_code == {"likely": 0, "unlikely": 1}[document["verdict"]["decision"]]
    assert document["command"] == "screen"
    assert [row["adapter"] for row in document["skills"]] == ["count", "last"]
    assert all(row["n"] == 40 and row["alone"] > 0.9 for row in document["skills"])
    assert {row["adapter"] for row in document["retentions"]} == {"count", "last"}
    (group,) = document["groups"]
    assert group["proved"] and group["adapters"] == ["count", "last"]
    assert group["least"] == min(group["kept"])
    asked = {row["task"]: row["n"] for row in document["evaluation"]}
    assert {*asked} == {"count", "last"}
    # None of those that chose; the router by prompt learns from a part of the others.
    assert document["rounds"]["total"] <= 2 * (200 - 40)


@pytest.mark.parametrize(
    "words, named",
    [
        (OWN[:2], "last"),  # which has no task
        ((*OWN, "--own", "third=tasks/last.jsonl"), "third"),
        ((*OWN, "--own", "last=tasks/count.jsonl"), "last"),
        ((*OWN, "--task", "tasks/count.jsonl"), "--task"),
        ((*OWN, "--items", "180"), "--items"),
        ((*OWN, "--budget", "3"), "--budget"),
        ((*OWN, "--keep", "3"), "--keep"),
        ((*OWN, "--balance", "norm"), "--balance"),
        ((*OWN[:3], "last=tasks/nothing.jsonl"), "tasks/nothing.jsonl"),
        (("--own", "count=tasks/strangers.jsonl", "--own", "last=tasks/strangers.jsonl"), "0.15"),
    ],
)
def test_wrong_calls_are_one_sentence(world, words, named):
    found = making.call(*CALL, *words)
    assert found.exit_code == 2 and found.stdout == ""
    assert found.stderr.startswith("error: ") and named in found.stderr


def test_a_report_tells_what_the_proof_measured_beside_the_forecast(world):
    table = [line for line in making.call(*CALL, *OWN).stdout.splitlines() if "count, last" in line]
    forecast, *_, measured = [float(word) for word in table[-1].split() if word[0].isdigit()]
    assert forecast > 0.8 > 0.5 > measured  # two skills with lists, which the forecast does not see


def test_two_files_of_one_name_are_refused(world, tmp_path):
    for name in ("count", "last"):
        (tmp_path / name).mkdir()
        shutil.copy(f"tasks/{name}.jsonl", tmp_path / name / "t.jsonl")
    own = [word for n in ("count", "last") for word in ("--own", f"{n}={tmp_path / n}/t.jsonl")]
    found = making.call(*CALL, *own)
    assert found.exit_code == 2 and "rename" in found.stderr


def test_the_estimate_asks_a_few_questions_and_keeps_nothing(world):
    found = making.call(*CALL, *OWN, "--dry-run", "--json")
    estimate = json.loads(found.stdout)["estimate"]
    assert found.exit_code == 0 and estimate["seconds"] > 0
    assert estimate["systems"] == ["base", "count", "last"] and estimate["items"] == 80


def test_python_gives_the_same(world):
    own = (("count", "tasks/count.jsonl"), ("last", "tasks/last.jsonl"))
    audit = loraprobe.screen(["adapters/count", "adapters/last"], base="base", own=own, threads=1)
    (group,) = audit.groups
    assert group.adapters == ("count", "last") and audit.verdict is not None
