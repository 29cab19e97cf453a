"""`screen --own`: the forecast against least squares and all subsets, and the command."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import making
import numpy as np
import pytest
import yaml
from merges import merge

import loraprobe
from loraprobe.demo import shipped_world
from loraprobe.extensions.screen.defaults import GATES, KINSHIP
from loraprobe.extensions.screen.together.forecast import (
    Curve,
    MeasuredPair,
    MergeForecast,
    cycle,
    inner_products,
    interferences,
    kinship_in,
)
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
    curves = {adapter.name: straight() for adapter in adapters}
    forecast = MergeForecast(curves, inner_products(adapters), kinship=1.0)
    for group in (("a", "b"), ("c", "a"), ("a", "b", "c")):
        chosen = [adapters["abc".index(name)] for name in group]
        merged = flat(merge(chosen, "uniform").adapter)
        expected = [np.linalg.lstsq(flat(a)[:, None], merged, rcond=None)[0][0] for a in chosen]
        assert forecast.shares(group) == pytest.approx(expected, rel=1e-5)
        own, more = 1 / len(group), dataclasses.replace(forecast, kinship=2.5).shares(group)
        assert more == pytest.approx([own + 2.5 * (share - own) for share in expected], rel=1e-5)


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
    many = Curve.of(*(np.tile(one, 25) for one in (base, alone)), {0.5: np.tile(half, 25)})
    assert 0 < many.error(0.5) < curve.error(0.5) / 4
    points = dict(zip(curve.gates, zip(curve.kept, curve.errors, strict=True), strict=True))
    again = Curve.through(points)
    assert (again.at(0.4), again.error(0.4)) == (curve.at(0.4), curve.error(0.4))


@pytest.mark.parametrize("count", [3, 4, 7, 12])
def test_every_adapter_is_measured_beside_two_others(count):
    names = [f"a{at}" for at in range(count)]
    pairs = cycle(names, seed=3)
    assert len(pairs) == len({frozenset(pair) for pair in pairs}) == count
    assert all(sum(name in pair for pair in pairs) == 2 for name in names)
    assert pairs == cycle(names, seed=3) and cycle(names[:2], seed=3) == []
    assert count < 7 or pairs != cycle(names, seed=4)


def test_interference_is_the_mean_loss_drawn_towards_the_mean_of_all():
    losses = {"a": [0.5, 0.3], "b": [0.1, 0.1], "c": [0.2]}
    pairs = [
        MeasuredPair(name, "x", 0.9 - loss, 0.0, 0.4)  # of which twice as much counts
        for name, own in losses.items()
        for loss in own
    ]
    curves = {name: straight() for name in "abcd"}
    taken = interferences(curves, pairs, kinship=2.0)
    assert taken == pytest.approx(
        {"a": (0.8 + 2 * 0.24) / 4, "b": (0.2 + 2 * 0.24) / 4, "c": (0.2 + 2 * 0.24) / 3, "d": 0.24}
    )
    unsure = [*pairs, MeasuredPair("c", "y", -5.0, 20.0, 0.4)]
    assert interferences(curves, unsure, 2.0) == pytest.approx(taken, abs=0.01)
    assert interferences(curves, [], 2.0) == dict.fromkeys("abcd", 0.0)


@pytest.mark.parametrize("true", [0.5, 1.0, 2.0, 2.75])
def test_measured_pairs_tell_how_much_of_what_is_alike_counts(true):
    curves = {name: straight(items=400) for name in "abcdef"}
    alike = [0.0, 0.35, -0.2, 0.3, 0.1, 0.25]
    pairs = [
        MeasuredPair(name, "x", curves[name].at((1 + true * own) / 2) - 0.05, 0.0, own)
        for name in curves
        for own in alike
    ]
    assert kinship_in(curves, pairs * 4) == true
    orthogonal = [dataclasses.replace(pair, alike=0.0) for pair in pairs]
    assert kinship_in(curves, orthogonal) == kinship_in(curves, []) == KINSHIP


def test_what_others_take_is_subtracted_and_a_measured_pair_is_told_as_it_is():
    curves, inner = {name: straight() for name in "abc"}, np.eye(3)
    pair = MeasuredPair("a", "b", 0.15, 0.05, 0.5)
    forecast = MergeForecast(curves, inner, {"a": 0.2, "b": 0.6}, [pair])
    assert forecast.kept("ac") == pytest.approx([0.3, 0.5])
    assert forecast.kept("ba") == pytest.approx([0.0, 0.15])  # nothing is kept below 0
    assert forecast.kept("abc") == pytest.approx([1 / 3 - 0.2, 0.0, 1 / 3], abs=0.02)
    (measured, _), (a, c) = forecast.of("ab"), forecast.of("ac")
    assert sum(a.ci95) / 2 == pytest.approx(0.3)
    errors = [(one.ci95[1] - one.ci95[0]) / 2 / 1.96 for one in (measured, a, c)]
    assert errors[0] == pytest.approx(0.05, rel=1e-3)
    assert errors[2] > 0.3 > errors[1] > 0.2  # nothing measured of c, something of a


def test_a_group_has_several_tasks_where_there_are_several():
    inner = np.eye(4) * 0.05 + np.kron(np.eye(2), np.ones((2, 2)))  # a and b, c and d are kin
    forecast = MergeForecast({name: straight() for name in "abcd"}, inner)
    assert forecast.groups(0.8, 1, dict.fromkeys("abcd", "one")) == [("a", "b")]
    (best,) = forecast.groups(0.8, 1, {"a": "one", "b": "one", "c": "two", "d": "two"})
    assert {*best} & {*"ab"} and {*best} & {*"cd"}


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
    found = forecast.groups(least, 3, dict.fromkeys(names, "one"))

    def sure(group):
        return min(one.value - one.by_items for one in forecast.of(group))

    if fine:
        assert len(found[0]) == max(map(len, fine))
        assert sure(found[0]) == max(sure(g) for g in fine if len(g) == len(found[0]))
    else:
        assert [*map(sure, found)] == [max(sure(g) for g in every if len(g) == 2)]


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


def test_three_adapters_are_measured_in_all_pairs(world, tmp_path):
    rows = [json.loads(line) for line in Path("tasks/strangers.jsonl").read_text().splitlines()]
    hops = [row["hops"][0] | {"group": row["group"]} for row in rows]
    lines = [json.dumps({k: hop[k] for k in ("prompt", "answer", "group")}) for hop in hops]
    (tmp_path / "spouse.jsonl").write_text("\n".join(lines))
    own = (*OWN, "--own", f"spouse={tmp_path / 'spouse.jsonl'}")
    found = making.call(*CALL, "adapters/spouse", *own, "--router", "none", "--json")
    document = json.loads(found.stdout)
    assert found.exit_code in (0, 1, 3)
    assert len(document["retentions"]) == 6
    assert all(row["measured"] and 0 <= row["value"] <= 1.2 for row in document["retentions"])
    kept = {(row["adapter"], row["partners"][0]): row["value"] for row in document["retentions"]}
    # The two skills with lists do not live together, which no adapter alone shows.
    assert kept["count", "last"] < 0.5 < kept["count", "spouse"]
    taken = {row["adapter"]: row["interference"] for row in document["skills"]}
    assert taken["count"] > taken["last"]
    (proved,) = (one for one in document["groups"] if one["proved"])
    assert set(proved["adapters"]) != {"count", "last"}
    # Pairs that an earlier result measured are measured, and tell the same of others.
    (tmp_path / "screen.json").write_text(found.stdout)
    again = making.call(*CALL, "adapters/spouse", "--known", tmp_path / "screen.json", "--json")
    known = json.loads(again.stdout)
    for before, now in zip(document["retentions"], known["retentions"], strict=True):
        assert now.pop("ci95") == pytest.approx(before.pop("ci95")) and now == before
    names = ("third=adapters/count", "adapters/last")
    two = making.call(
        "screen", *names, "--base", "base", "--known", tmp_path / "screen.json", "--json"
    )
    values = {row["adapter"]: row["value"] for row in json.loads(two.stdout)["retentions"]}
    assert values == {"third": kept["count", "last"], "last": kept["last", "count"]}


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


def test_questions_of_one_group_count_once_where_the_choice_is_proved(world, tmp_path):
    rows = [json.loads(line) for line in Path("tasks/last.jsonl").read_text().splitlines()]
    grouped = [row | {"group": f"g{at // 4}"} for at, row in enumerate(rows[:120])]
    (tmp_path / "last.jsonl").write_text("\n".join(map(json.dumps, grouped)))
    found = making.call(*CALL, *OWN[:2], "--own", f"last={tmp_path / 'last.jsonl'}")
    assert found.exit_code == 2 and "120 items in 30 groups" in found.stderr


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
