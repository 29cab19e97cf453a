"""Weights that are learned on items set apart, on the world that ships."""

from __future__ import annotations

import json
import math

import making
import pytest
import torch
from composing import dora
from merges import merge

import loraprobe
from loraprobe import hub
from loraprobe.adapters import layer_of, read_adapter
from loraprobe.base import load_base, open_base
from loraprobe.defaults import LEARNING_BOUND, LEARNING_SHRINK, LEARNING_STEPS
from loraprobe.errors import OutputError, TaskError, UnsupportedAdapter
from loraprobe.options import Options
from loraprobe.pipeline.fitting import check_learnable, learned_weights
from loraprobe.pipeline.plan import Fitted, SystemBuilder, plan_of
from loraprobe.pipeline.transforms import PreparedAdapters, scaled_by_layer
from loraprobe.records import LearnedWeights
from loraprobe.routing import _learned
from loraprobe.routing._learned import fit_weights
from loraprobe.routing.constant import single
from loraprobe.scoring import ModelScorer
from loraprobe.session import Session
from loraprobe.tasks import Item, Task, load_task
from loraprobe.tasks.splits import TaskSplit, split_for_weights
from loraprobe_lab import shipped_world

LEARN, PER_LAYER = Options(weights="learn"), Options(weights="learn:per=layer")


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
    loaded = load_base(open_base(world.base, "world"))
    tasks = [load_task(path, 60) for path in scenario.tasks]
    return ModelScorer(loaded.model, loaded.tokenizer), adapters, tasks


def loss_of(scorer, adapters, tasks) -> float:
    """Nats a token of the likeliest gold answers under the sum of the adapters, merged."""
    merged = merge(adapters, "sum", dtype=torch.float32).adapter
    means = []
    for task in tasks:
        pairs = [(item.prompt, answer) for item in task.items for answer in item.answers]
        best = dict.fromkeys((prompt for prompt, _ in pairs), -math.inf)
        with scorer.with_composition(single(merged)):
            for (prompt, _), found in zip(pairs, scorer.loglikelihood(pairs), strict=True):
                best[prompt] = max(best[prompt], found.per_token)
        means.append(-sum(best.values()) / len(best))
    return sum(means) / len(means)


def test_the_parts_share_no_cluster_and_no_prompt():
    first = task_of("a", [(f"q{i}", f"g{i % 10}") for i in range(40)])
    second = task_of("b", [(f"q{i % 13}", "g3" if i == 20 else None) for i in range(40)])
    for seed in range(20):
        parted = split_for_weights([first, second], Options(weights="learn", seed=seed))
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
        assert parted == split_for_weights([first, second], Options(weights="learn", seed=seed))
    seeds = {split_for_weights([first], Options(weights="learn", seed=s)).left for s in range(5)}
    assert len(seeds) > 1


@pytest.mark.parametrize(
    "items, said",
    [
        ([(f"q{i}", None) for i in range(12)], "too few to learn"),
        ([(f"q{i}", "one") for i in range(40)], "40 items in 1 groups"),
    ],
)
def test_a_task_too_small_to_split_is_an_error(items, said):
    with pytest.raises(TaskError, match=said):
        split_for_weights([task_of("t", items)], LEARN)


@pytest.mark.parametrize("options", [LEARN, PER_LAYER])
def test_learned_weights_are_good_where_nothing_was_learned(bench, options, monkeypatch):
    """Their loss is that of the merged adapter, here and elsewhere."""
    scorer, adapters, tasks = bench
    parted, told = split_for_weights(tasks, options), []
    monkeypatch.setattr(scorer, "progress", lambda *step: told.append(step))
    found = fit_weights(scorer, adapters, parted, options.learns_layers)
    assert told[-1] == ("learn weights", LEARNING_STEPS, LEARNING_STEPS)
    assert list(found.weights) == [a.name for a in adapters]
    assert (found.items, found.left) == parted.items and found.evaluations == LEARNING_STEPS
    if options.learns_layers:
        paths = {layer_of(path) for a in adapters for path in a.layout}
        layers, weights = found.layers, [*found.layers.values()]
        assert set(layers) == paths and found.factors == (1.0,) * len(adapters)
        means = [sum(own) / len(weights) for own in zip(*weights, strict=True)]
        assert list(found.weights.values()) == pytest.approx(means, abs=1e-4)
    else:
        weights = [found.factors]
        layers = {layer_of(path): found.factors for a in adapters for path in a.layout}
    flat = [w for own in weights for w in own]
    assert all(abs(w) <= LEARNING_BOUND and w == round(w, 4) for w in flat)
    made = scaled_by_layer(adapters, layers)
    assert found.loss == pytest.approx(loss_of(scorer, made, parted.apart), rel=1e-4)
    shrinking = LEARNING_SHRINK * sum(map(abs, flat)) / len(flat)
    assert found.objective == pytest.approx(found.loss + shrinking, rel=1e-6)
    half = scaled_by_layer(adapters, dict.fromkeys(layers, (0.5, 0.5)))
    assert found.uniform_loss == pytest.approx(loss_of(scorer, half, parted.apart), rel=1e-4)
    assert found.objective < found.uniform - 0.5
    elsewhere = [loss_of(scorer, one, parted.left) for one in (made, half, adapters)]
    assert elsewhere[0] < min(elsewhere[1:])


def test_two_answers_and_several_tasks_count_as_they_should(bench):
    scorer, adapters, tasks = bench
    one, two = (item.answers[0] for item in tasks[0].items[:2])
    answers = ((f"{one} {two} {one}",), (two, f"{one} {one}"), (one,))
    items = [Item(str(i), tasks[0].items[i].prompt, own) for i, own in enumerate(answers)]
    parted = TaskSplit((Task("long", tuple(items[:2])), Task("short", tuple(items[2:]))), ())
    found = fit_weights(scorer, adapters, parted)
    half = scaled_by_layer(adapters, {layer_of(p): (0.5, 0.5) for p in adapters[0].layout})
    assert found.uniform_loss == pytest.approx(loss_of(scorer, half, parted.apart), rel=1e-4)


def test_a_run_that_is_resumed_learns_nothing_again(bench, tmp_path, monkeypatch):
    scorer, adapters, tasks = bench
    parted, path = split_for_weights(tasks, PER_LAYER), tmp_path / "learned.jsonl"
    monkeypatch.setattr(_learned, "LEARNING_STEPS", 2)
    first, resumed = Session(PER_LAYER), Session(PER_LAYER, resume=True)
    found = learned_weights(adapters, parted, scorer, first, path)
    assert learned_weights(adapters, parted, scorer, first) == found
    assert learned_weights(adapters, parted, None, resumed, path) == found
    head = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(head + b'{"weights": 1.0}\n')
    with pytest.raises(OutputError, match="line 2"):
        learned_weights(adapters, parted, None, resumed, path)


def test_adapters_without_a_gate_to_differentiate_by_are_refused():
    plain, scaled = making.random_adapter("plain"), dora("scaled", 1)
    check_learnable([plain, scaled], LEARN)
    with pytest.raises(UnsupportedAdapter, match="scaled"):
        check_learnable([plain, scaled], PER_LAYER)


def test_merge_and_eval_judges_on_the_rest(own_cache):
    scenario = shipped_world().scenario("skill-and-facts")
    (task,) = scenario.tasks
    options = (
        "--limit 32 --weights learn --system task-arithmetic "
        "--system random-partner --metric answer_loss --margin 0.1"
    )
    arguments = ["merge-and-eval", *making.shipped("skill-and-facts"), *options.split()]
    _, document = making.answered(*arguments)
    found = document["search"]
    parted = split_for_weights([load_task(task, 32)], LEARN)
    assert (found["items"], found["left"]) == (8, 24) == parted.items
    assert found["evaluations"] == LEARNING_STEPS and found["layers"] == {}
    (responses,) = own_cache.rglob("results.jsonl")
    rows = [json.loads(line) for line in responses.read_text().splitlines()[1:]]
    systems = {row["system"].partition(":")[0] for row in rows}
    assert {"base", *scenario.adapters, "task-arithmetic", "random-partner"} <= systems
    left = {item.id for item in parted.left[0].items}
    assert {row["item"] for row in rows} == left
    assert {r["n"] for r in document["evaluation"] if r["part"] == "question"} == {24}
    assert document["verdict"]["probability"] is None
    assert any("8 items" in line and "24 were left" in line for line in document["notes"])
    value = {r["system"]: r["value"] for r in document["evaluation"] if r["part"] == "question"}
    assert value["task-arithmetic"] < min(value["base"], *(value[n] for n in scenario.adapters))
    assert making.answered(*arguments, "--resume")[1]["search"] == found
    assert (responses.parent / "learned.jsonl").is_file()


def test_unsupported_methods_and_methods_without_weights():
    adapters = [making.random_adapter(name, seed=seed) for seed, name in enumerate("ab")]

    def options(*methods):
        return Options(methods=methods, routers=(), weights="learn")

    def systems(*methods):
        prepared, chosen = PreparedAdapters(tuple(adapters)), options(*methods)
        found = LearnedWeights({"a": 0.3, "b": -0.2}, 1.0, 1.0, 1.0, 1, 1, 1, 1)
        builder = SystemBuilder(adapters, prepared, chosen, fitted=Fitted(found))
        return [builder.build(spec) for spec in plan_of(chosen, adapters).specs]

    assert [s.name for s in systems("uniform")] == ["uniform", "task_arithmetic"]
    built = {s.name: s.composition for s in systems("uniform", "ties")}
    assert list(built) == ["uniform", "ties"]
    wanted = merge(adapters, "ties", weights=(0.3, -0.2)).adapter
    path = next(iter(wanted.modules))
    assert torch.equal(built["ties"].experts[0].modules[path].A, wanted.modules[path].A)
    added = systems("uniform")[1].composition
    assert added.router.weights == (0.3, -0.2)


@pytest.mark.needs("verify")
@pytest.mark.parametrize("weights", ["learn", "learn:per=layer"])
def test_a_merge_with_learned_weights_is_an_adapter_that_verify_repeats(
    tmp_path, weights, monkeypatch
):
    monkeypatch.setattr(_learned, "LEARNING_STEPS", 8)
    world = shipped_world()
    scenario = world.scenario("skill-and-facts")
    paths = list(scenario.adapters.values())
    (task,) = scenario.tasks
    call = ["merge", *paths, "--weights", weights, "-o", tmp_path / "out"]
    call += ["--method", "task-arithmetic", "--base", world.base, "--task", task, "--limit", "16"]
    document = making.document(*call)
    layers, weight = document["search"]["layers"], [*document["search"]["weights"].values()]
    sources = [read_adapter(path).modules for path in paths]
    merged = read_adapter(tmp_path / "out").modules
    for path, made in merged.items():
        own = layers.get(layer_of(path), weight)
        terms = [(w, held[path]) for w, held in zip(own, sources, strict=True) if path in held]
        wanted = sum(w * update.to(torch.float64).delta() for w, update in terms)
        error = (made.to(torch.float64).delta() - wanted).norm() / wanted.norm()
        assert error < 0.01, path
    options = {"base": world.base, "tasks": task, "limit": 16}
    api = loraprobe.merge(paths, "task_arithmetic", weights=weights, **options)
    assert api.weights == (tuple(weight) if weights == "learn" else (1.0, 1.0))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "found by gradient descent in 8 steps on 4 items" in card
    verify = ["verify", tmp_path / "out", *paths, "--base", world.base]
    assert making.call(*verify).exit_code == 0
    if layers:
        first = next(iter(layers.values()))[0]
        (tmp_path / "out" / "README.md").write_text(card.replace(f"- {first}", "- 0.7", 1))
        assert making.call(*verify).exit_code == 1
