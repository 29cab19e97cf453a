"""`screen --own`: the forecast against least squares and all subsets, and the command."""

import dataclasses
import itertools
import json
import shutil

import making
import numpy as np
import pytest
import yaml
from merges import merge

import loraprobe
from loraprobe.demo import shipped_world
from loraprobe.extensions.screen.defaults import GATES
from loraprobe.extensions.screen.together.forecast import Curve, MergeForecast, inner_products
from loraprobe.extensions.screen.together.known import card_part
from loraprobe.front_matter import KEY
from loraprobe.records import plain
from loraprobe.report.documents import read_audit

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
    points = dict(zip(curve.gates, zip(curve.kept, curve.errors, strict=True), strict=True))
    assert Curve.through(points).interval(0.4) == curve.interval(0.4)


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


# ---- what is known from earlier results ----------------------------------------------------------


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """Results in the shipped world: of `screen --own`, and of a merge that was asked two tasks."""
    place, world = tmp_path_factory.mktemp("earlier"), shipped_world().path
    adapters = [str(world / "adapters" / name) for name in ("count", "last")]
    tasks = [str(world / "tasks" / f"{name}.jsonl") for name in ("count", "last")]
    common = ("--base", str(world / "base"), "--threads", "1", "--json")
    own = [word for name, file in zip(("count", "last"), tasks, strict=True)
           for word in ("--own", f"{name}={file}")]  # fmt: skip
    asked = [word for file in tasks for word in ("--task", file)]
    calls = {
        "screen": ("screen", *adapters, *common, *own),
        "merge": ("merge-and-eval", *adapters, *common, *asked, "--method", "uniform"),
    }
    for name, call in calls.items():
        (place / f"{name}.json").write_text(making.call(*call).stdout, encoding="utf-8")
    return place


def test_what_is_known_is_not_asked_and_gives_the_same_forecast(world, earlier):
    document = json.loads(making.call(*CALL, "--known", earlier / "screen.json", "--json").stdout)
    before = json.loads((earlier / "screen.json").read_text())
    assert document["retentions"] == before["retentions"]
    assert document["verdict"] is None and document["evaluation"] == []
    assert [row["known"] for row in document["skills"]] == ["screen.json"] * 2
    (group,) = document["groups"]
    assert group == before["groups"][0] | {"proved": False}


def test_a_merge_that_was_asked_is_a_point_of_each_curve(world, earlier):
    audit = read_audit(earlier / "merge.json")
    scores = {row.task: row for row in audit.evaluation.scores if row.system == "uniform"}
    assert {row.adapter: (row.task, row.value) for row in audit.keeps} == {
        name: (name, scores[name].retention) for name in ("count", "last")
    }
    found = making.call(*CALL, *OWN[2:], "--known", earlier / "merge.json", "--json")
    document = json.loads(found.stdout)
    assert {row["adapter"]: row["known"] for row in document["skills"]} == {
        "count": "merge.json",
        "last": "merge.json",
    }
    # In the same pair the share is the same: what was measured is the forecast.
    forecast = {row["adapter"]: row["value"] for row in document["retentions"]}
    assert forecast == pytest.approx({row.adapter: row.value for row in audit.keeps})


def test_the_card_of_a_uniform_merge_tells_it_and_is_read_again(world, earlier, tmp_path):
    audit = read_audit(earlier / "merge.json")
    assert audit.verdict is not None
    uniform = dataclasses.replace(audit, verdict=dataclasses.replace(audit.verdict, system="sum"))
    assert card_part(uniform) == []
    uniform = dataclasses.replace(
        audit, verdict=dataclasses.replace(audit.verdict, system="uniform")
    )
    (part,) = card_part(uniform)
    matter = {KEY: {"base": plain(audit.base), **part.facts}}
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(matter)}---\n", encoding="utf-8")
    by_card, by_document = (
        json.loads(making.call(*CALL, "--known", place, "--json").stdout)
        for place in (tmp_path, earlier / "merge.json")
    )
    assert by_card["retentions"] == by_document["retentions"]


def test_other_bases_and_other_adapters_are_not_known(world, earlier, tmp_path):
    document = json.loads((earlier / "screen.json").read_text())
    other = tmp_path / "other.json"
    other.write_text(json.dumps(document | {"base": document["base"] | {"sha256": "0" * 64}}))
    cards = {"empty": "no card", "bad": f"---\n{KEY}: {{keeps: [1]}}\n---\n"}
    for name, text in cards.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text(text)
    pair = ("screen", "adapters/city", "adapters/spouse", "--base", "base")
    for call in (
        (*CALL, "--known", other),
        (*CALL, "--known", tmp_path / "nothing.json"),
        (*CALL, "--known", tmp_path / "nothing"),
        *((*CALL, "--known", tmp_path / name) for name in cards),
        (*pair, "--known", earlier / "screen.json"),
        (*CALL, "--known", earlier / "screen.json", "--task", "tasks/count.jsonl"),
        (*CALL, "--known", earlier / "screen.json", "--dry-run"),
    ):
        found = making.call(*map(str, call))
        assert found.exit_code == 2 and found.stdout == "", call
        assert found.stderr.startswith("error: ") and "defect" not in found.stderr, call


def test_python_gives_the_same(world):
    own = (("count", "tasks/count.jsonl"), ("last", "tasks/last.jsonl"))
    audit = loraprobe.screen(["adapters/count", "adapters/last"], base="base", own=own, threads=1)
    (group,) = audit.groups
    assert group.adapters == ("count", "last") and audit.verdict is not None
