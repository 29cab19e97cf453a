"""Searched weights: what is set apart serves nothing else, and what is found is good elsewhere."""

from __future__ import annotations

import dataclasses
import json
import math

import jsonschema
import making
import numpy
import pytest
import torch

import loraprobe
from loraprobe import hub
from loraprobe.adapters import read_adapter
from loraprobe.base import open_base
from loraprobe.errors import OutputError, TaskError
from loraprobe.merging import merge
from loraprobe.options import Options
from loraprobe.pipeline.systems import SystemBuilder, plan_of
from loraprobe.pipeline.task_split import split
from loraprobe.pipeline.transforms import Prepared
from loraprobe.pipeline.weight_search import (
    BOUND,
    SHRINK,
    answer_losses,
    find_weights,
    tried_weights,
)
from loraprobe.report.documents import json_schema
from loraprobe.routing.constant import single
from loraprobe.scoring import Scorer
from loraprobe.tasks import Item, Task, load_task
from loraprobe_lab import shipped_world

SEARCH = Options(weights="search", search_budget=24, search_items=12)


def task_of(name: str, items: list[tuple[str, str | None]]) -> Task:
    """A task of (prompt, group) pairs."""
    return Task(
        name,
        tuple(Item(str(i), prompt, ("x",), group=group) for i, (prompt, group) in enumerate(items)),
    )


@pytest.fixture(scope="module")
def bench():
    """A scorer of the shipped world's base, and the adapters and task of a scenario."""
    world = shipped_world()
    scenario = world.scenario("skill-and-facts")
    adapters = hub.load_all([f"{name}={path}" for name, path in scenario.adapters.items()])
    loaded = open_base(world.base, "world").load()
    tasks = [load_task(path, 60) for path in scenario.tasks]
    return Scorer(loaded.model, loaded.tokenizer), adapters, tasks


def objective(losses, weights: tuple[float, ...]) -> float:
    return losses([weights])[0] + SHRINK * sum(map(abs, weights)) / len(weights)


def test_the_parts_share_no_cluster_and_no_prompt():
    first = task_of("a", [(f"q{i}", f"g{i % 10}") for i in range(40)])
    second = task_of("b", [(f"q{i % 13}", "g3" if i == 20 else None) for i in range(40)])
    for seed in range(20):
        parted = split([first, second], Options(weights="search", seed=seed))
        sides = [
            {(t.name, i.id) for t in part for i in t.items} for part in (parted.apart, parted.left)
        ]
        assert not sides[0] & sides[1] and len(sides[0] | sides[1]) == 80
        for what in ("group", "prompt"):
            held = [
                {getattr(i, what) for t in part for i in t.items if what == "group" or not i.group}
                for part in (parted.apart, parted.left)
            ]
            assert not (held[0] & held[1]) - {None}, what
        assert all(len(t.items) >= 10 for t in parted.apart)
        assert [t.sha256 for t in parted.left] == ["", ""]
        assert parted == split([first, second], Options(weights="search", seed=seed))
    seeds = {split([first], Options(weights="search", seed=s)).left for s in range(5)}
    assert len(seeds) > 1


@pytest.mark.parametrize(
    "items, wanted, said",
    [
        ([(f"q{i}", None) for i in range(12)], None, "too few to search"),
        ([(f"q{i}", "one") for i in range(40)], None, "40 items in 1 clusters"),
        ([(f"q{i}", None) for i in range(12)], 11, "nothing is left to judge by"),
    ],
)
def test_a_task_too_small_to_split_is_a_usage_error(items, wanted, said):
    with pytest.raises(TaskError, match=said):
        split([task_of("t", items)], Options(weights="search", search_items=wanted))


def test_losses_are_those_of_the_weighted_sum(bench):
    """Against adapters merged with these weights, and against one candidate at a time."""
    scorer, adapters, tasks = bench
    parted = split(tasks, SEARCH)
    weights = [(0.5, 0.5), (1.2, -0.4), (1.0, 0.0)]
    side_by_side = answer_losses(scorer, adapters, parted.apart)(weights)
    for found, w in zip(side_by_side, weights, strict=True):
        merged = merge(adapters, "task_arithmetic", weights=w, dtype=torch.float32).adapter
        with scorer.with_composition(single(merged)):
            (items,) = [t.items for t in parted.apart]
            pairs = [(i.prompt, i.answers[0]) for i in items]
            assert all(len(i.answers) == 1 for i in items)
            wanted = [-likely.per_token for likely in scorer.loglikelihood(pairs)]
        assert found == pytest.approx(sum(wanted) / len(wanted), rel=1e-4)
    assert len({round(x, 3) for x in side_by_side}) == 3


def test_long_answers_count_by_the_token_and_the_cheapest_of_several_counts(bench):
    scorer, adapters, tasks = bench
    one, two = (item.answers[0] for item in tasks[0].items[:2])
    items = tuple(
        dataclasses.replace(item, answers=answers)
        for item, answers in zip(
            tasks[0].items, ((f"{one} {two} {one}",), (two, f"{one} {one}"), (one,)), strict=False
        )
    )
    tasks = [Task("long", items[:2]), Task("short", items[2:])]
    with scorer.with_composition(single(adapters[0])):
        means = [
            [-scorer.loglikelihood([(item.prompt, a)])[0].per_token for a in item.answers]
            for item in items
        ]
        tokens = scorer.loglikelihood([(items[0].prompt, items[0].answers[0])])[0].tokens
    assert tokens == 3
    long, short = (min(means[0]) + min(means[1])) / 2, min(means[2])
    found = answer_losses(scorer, adapters, tasks)([(1.0, 0.0)])
    assert found == pytest.approx([(long + short) / 2], rel=1e-5)


def test_experts_that_hold_whole_parameters_are_searched_one_candidate_at_a_time(bench):
    scorer, adapters, tasks = bench
    searched = split(tasks, SEARCH).apart
    name, weight = next(iter(scorer.model.named_parameters()))
    same = dataclasses.replace(adapters[0], whole={name: weight.detach().clone()})
    weights = [(0.5, 0.5), (1.2, -0.4)]
    alone = answer_losses(scorer, [same, *adapters[1:]], searched)(weights)
    assert alone == pytest.approx(answer_losses(scorer, adapters, searched)(weights), rel=1e-5)


def test_found_weights_are_good_where_nothing_was_searched(bench):
    scorer, adapters, tasks = bench
    parted, asked = split(tasks, SEARCH), []
    numpy.random.seed(7)
    state = numpy.random.get_state()[1].copy()
    found = find_weights(
        scorer, adapters, parted, SEARCH, progress=lambda *step: asked.append(step[1:])
    )
    assert (numpy.random.get_state()[1] == state).all()  # cma seeds numpy's own unless told not to
    best = tuple(found.weights.values())
    assert list(found.weights) == [a.name for a in adapters]
    assert all(abs(w) <= BOUND and w == round(w, 4) for w in best)
    assert found.evaluations == asked[-1][0] == 24 == asked[-1][1]
    corners = [(0.5, 0.5), (1.0, 1.0), (1.0, 0.0), (0.0, 1.0)]
    here = answer_losses(scorer, adapters, parted.apart)
    assert found.objective == pytest.approx(objective(here, best), rel=1e-5)
    assert found.objective <= min(objective(here, w) for w in corners) + 1e-9
    assert found.uniform == pytest.approx(objective(here, (0.5, 0.5)), rel=1e-5)
    elsewhere = answer_losses(scorer, adapters, parted.left)
    held = elsewhere([best, *corners])
    assert held[0] < min(held[1:])
    assert find_weights(scorer, adapters, parted, SEARCH) == found
    assert (found.items, found.left) == (12, 48) == parted.items


def test_a_budget_below_the_corners_is_kept(bench):
    scorer, adapters, tasks = bench
    few = dataclasses.replace(SEARCH, search_budget=3)
    assert find_weights(scorer, adapters, split(tasks, few), few).evaluations == 3


def test_an_interrupted_search_goes_on_where_it_stopped(bench, tmp_path, monkeypatch):
    scorer, adapters, tasks = bench
    parted, path = split(tasks, SEARCH), tmp_path / "search.jsonl"
    wanted = find_weights(scorer, adapters, parted, SEARCH, memory=tried_weights(path))
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 25
    path.write_bytes(b"".join(lines[:11]) + lines[11][:5])  # cut short in the middle of a line
    asked = []

    def counting(*arguments):
        inner = answer_losses(*arguments)
        return lambda candidates: asked.extend(candidates) or inner(candidates)

    monkeypatch.setattr("loraprobe.pipeline.weight_search.answer_losses", counting)
    again = find_weights(scorer, adapters, parted, SEARCH, memory=tried_weights(path, resume=True))
    assert dataclasses.replace(again, objective=0.0, loss=0.0) == dataclasses.replace(
        wanted, objective=0.0, loss=0.0
    )
    assert len(asked) == 14 and len(path.read_bytes().splitlines()) == 25
    row = {"weights": [0.5, 0.5], "loss": 1.0}
    losses = [{"loss": loss} for loss in ("1", None, math.nan, 7e9)]
    weights = [{"weights": w} for w in ([7.0, 0.5], [True, 0.5], 1.0)]
    for damage in (*losses, *weights, {"x": 1}):
        path.write_bytes(lines[0] + json.dumps(row | damage).encode() + b"\n")
        with pytest.raises(OutputError, match="line 2"):
            tried_weights(path, resume=True)
    tried_weights(path)  # without resume what was known is gone
    assert path.read_bytes() == lines[0]


def test_merge_and_eval_judges_on_the_rest(tmp_path):
    world = shipped_world()
    scenario = world.scenario("skill-and-facts")
    refs = [f"{name}={path}" for name, path in scenario.adapters.items()]
    (task,) = scenario.tasks
    options = (
        "--json --limit 32 --weights search --search-budget 10 --system task-arithmetic "
        "--system random-partner --metric answer_loss --margin 0.1"
    )
    arguments = ["merge-and-eval", *refs, "--task", task, "--base", world.base, *options.split()]
    environment = {"LORAPROBE_CACHE": str(tmp_path)}
    document = json.loads(making.call(*arguments, env=environment).stdout)
    jsonschema.validate(document, json_schema())
    found = document["search"]
    parted = split([load_task(task, 32)], Options(weights="search"))
    assert (found["items"], found["left"]) == (8, 24) == parted.items
    assert found["evaluations"] == 10
    (ledger,) = tmp_path.rglob("results.jsonl")
    rows = [json.loads(line) for line in ledger.read_text().splitlines()[1:]]
    systems = {row["system"].partition(":")[0] for row in rows}
    assert {"base", *scenario.adapters, "task-arithmetic", "random-partner"} <= systems
    left = {item.id for item in parted.left[0].items}
    assert {row["item"] for row in rows} == left
    assert {r["n"] for r in document["evaluation"] if r["part"] == "question"} == {24}
    assert document["verdict"]["probability"] is None
    assert any("8 items" in line and "24 were left" in line for line in document["notes"])
    value = {r["system"]: r["value"] for r in document["evaluation"] if r["part"] == "question"}
    assert value["task-arithmetic"] < min(value["base"], *(value[n] for n in scenario.adapters))
    resumed = making.call(*arguments, "--resume", env=environment)
    assert json.loads(resumed.stdout)["search"] == found
    assert (ledger.parent / "search.jsonl").is_file()


def test_unsupported_methods_and_methods_without_weights():
    adapters = [making.random_adapter(name, seed=seed) for seed, name in enumerate("ab")]

    def options(*methods):
        return Options(methods=methods, routers=(), weights="search")

    def systems(*methods):
        prepared, chosen = Prepared(tuple(adapters)), options(*methods)
        builder = SystemBuilder(adapters, prepared, chosen, searched=(0.3, -0.2))
        return [builder.build(spec) for spec in plan_of(chosen, adapters).specs]

    assert [s.name for s in systems("uniform")] == ["uniform", "task_arithmetic"]
    built = {s.name: s.composition for s in systems("uniform", "ties")}
    assert list(built) == ["uniform", "ties"]
    wanted = merge(adapters, "ties", weights=(0.3, -0.2)).adapter
    path = next(iter(wanted.modules))
    assert torch.equal(built["ties"].experts[0].modules[path].A, wanted.modules[path].A)
    added = systems("uniform")[1].composition
    assert added.router.weights == (0.3, -0.2)


def test_merge_searches_weights_with_base_and_task_only(tmp_path):
    world = shipped_world()
    scenario = world.scenario("skill-and-facts")
    paths = list(scenario.adapters.values())
    (task,) = scenario.tasks
    call = ["merge", *paths, "--weights", "search", "-o", tmp_path / "out", "--json"]
    base = ["--base", world.base]
    asked = ["--task", task, "--limit", "48", "--search-budget", "8"]
    method = ["--method", "task-arithmetic"]
    for extra, said in (
        (method, "add --base DIR"),
        ([*method, *base], "--task FILE"),
        ([*base, *asked], "uniform has weights of its own"),
        ([*base, "--task", task, "--limit", "9", *method], "too few"),
        ([*method, "--search-budget", "0"], "search-budget"),
    ):
        result = making.call(*call, *extra)
        assert result.exit_code == 2 and said in json.loads(result.stdout)["error"]["message"]
    plain = [part if part != "search" else "1,1" for part in call]
    result = making.call(*plain, *base, "--task", task)
    assert result.exit_code == 2 and "--weights search" in result.stderr
    result = making.call(*call, *base, *asked, *method)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    jsonschema.validate(document, json_schema())
    weights = tuple(document["search"]["weights"].values())
    sources = [read_adapter(path).modules for path in paths]
    merged = read_adapter(tmp_path / "out").modules
    path = next(iter(merged))
    wanted = sum(
        w * m[path].to(torch.float64).delta() for w, m in zip(weights, sources, strict=True)
    )
    error = (merged[path].to(torch.float64).delta() - wanted).norm() / wanted.norm()
    assert error < 0.01
    options = {"base": world.base, "tasks": task, "limit": 48, "search_budget": 8}
    api = loraprobe.merge(paths, "task_arithmetic", weights="search", **options)
    assert api.weights == weights
    card = (tmp_path / "out" / "README.md").read_text()
    assert "found by CMA-ES in 8 evaluations on 12 items" in card
