"""Routers that learn from prompts, and the figures of gates, on the world that ships."""

from __future__ import annotations

import json
import math

import jsonschema
import making
import pytest
import torch
from composing import dora
from making import call, random_adapter, tiny_model
from tokenizers import processors

import loraprobe
from loraprobe import hub
from loraprobe.adapters import read_adapter
from loraprobe.base import open_base
from loraprobe.composition import Composition, composed, watched
from loraprobe.defaults import LEARNING_STEPS
from loraprobe.errors import OutputError, TaskError, UnsupportedAdapter, UsageError
from loraprobe.evaluation import System
from loraprobe.merging import merge
from loraprobe.options import Options
from loraprobe.pipeline import fitting
from loraprobe.pipeline.fitting import (
    BOUND,
    SHRINK,
    check_learnable,
    fit_routers,
    fitted_in,
    fitted_to,
    gather_prompts,
    learn,
)
from loraprobe.pipeline.gate_statistics import GateTally, gate_statistics
from loraprobe.pipeline.systems import Plan, SystemBuilder, TaskSplit, plan_of, split_for_weights
from loraprobe.pipeline.transforms import Transformed, layer_of, scaled_by_layer
from loraprobe.records import LearnedWeights
from loraprobe.report.documents import json_schema
from loraprobe.routing import ROUTERS
from loraprobe.routing.constant import single
from loraprobe.scoring import Scorer
from loraprobe.scoring.generation import generate_batch
from loraprobe.tasks import Item, Task, load_task
from loraprobe_lab import shipped_world
from loraprobe_lab.training import build_tokenizer

PATH = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def scorer():
    loaded = open_base(shipped_world().base).load(device=torch.device("cpu"), dtype=torch.float32)
    return Scorer(loaded.model, loaded.tokenizer)


@pytest.fixture(scope="module")
def pair():
    chosen = shipped_world().scenario("disjoint")
    return [read_adapter(path) for path in chosen.adapters.values()]


@pytest.fixture(scope="module")
def items():
    """The hops of people of whom the first 60 items do not speak, and those items."""
    (file,) = shipped_world().scenario("disjoint").tasks
    task = load_task(file)
    rest = task.items[100:130]
    prompts = {
        "spouse": [item.hop_prompt(0) for item in rest],
        "city": [item.hop_prompt(1) for item in rest],
    }
    return Task(task.name, task.items[:60]), prompts


def files_of(prompts, directory):
    made = []
    for name, lines in prompts.items():
        (directory / f"{name}.txt").write_text("\n".join(lines) + "\n\n")
        made.append((name, directory / f"{name}.txt"))
    return tuple(made)


def test_a_centroid_is_the_mean_input_of_a_module(scorer, pair, items):
    """Against prompts read one at a time, without any mask or batch."""
    prompts = items[1]
    router = fitted_in(ROUTERS.make("centroid"), scorer.model, scorer.tokenizer, pair, prompts)
    wanted = []
    for adapter in pair:
        rows: list[torch.Tensor] = []

        def look(path, x, output, rows=rows):
            if path == PATH:
                rows.append(x[0, 1:].double())

        with torch.no_grad(), watched(scorer.model, pair, look):
            for ids in scorer.encoder.prompts(prompts[adapter.name]):
                scorer.model(input_ids=torch.tensor([ids]))
        wanted.append(torch.cat(rows).mean(0))
    found = router.state()[f"centroid.{PATH}"]
    torch.testing.assert_close(found.double(), torch.stack(wanted), rtol=1e-4, atol=1e-5)
    assert set(router.state()) == {f"centroid.{path}" for path in pair[0].modules}
    assert not router.needs_prompts


NAMES = tuple(f"name{k}" for k in range(24))
SYSTEM = "<bos> {% for m in messages %}be brief . {{ m['content'] }} ok {% endfor %}"


def worded(form: str):
    """A tokenizer of one token a word: without a BOS, with one, or with a chat template."""
    tokenizer = build_tokenizer(["car pet of : be brief . ok", *NAMES])
    if form != "bos":
        bare = processors.TemplateProcessing(single="$A", special_tokens=[])
        tokenizer.backend_tokenizer.post_processor = bare
    tokenizer.chat_template = SYSTEM if form == "chat" else None
    return tokenizer


@pytest.mark.parametrize("form", ["no bos", "bos", "chat"])
def test_the_first_word_alone_may_tell_an_adapter(form):
    """In modules that read each word alone, and so see the others of both kinds of prompts alike.

    Prompts of two lengths are padded on the left, and answers continue a cache.
    """
    tokenizer = worded(form)
    model = tiny_model("Llama", vocab_size=len(tokenizer), hidden_size=64, initializer_range=0.3)
    paths = [f"model.layers.0.self_attn.{name}_proj" for name in "qkv"]
    shapes = {path: tuple(model.get_submodule(path).weight.shape) for path in paths}
    two = [random_adapter(name, shapes, seed=i) for i, name in enumerate("ab")]
    scorer = Scorer(model, tokenizer, chat_template=form == "chat")
    asked = {"a": "car of {} :", "b": "pet of {} :"}
    taught = {name: [text.format(n) for n in NAMES[:12]] for name, text in asked.items()}
    router = fitted_to(ROUTERS.make("hard:by=centroid,per=sequence"), scorer, two, taught)
    for j, text in enumerate(asked.values()):
        prompts = [*(text.format(n) for n in NAMES[12:]), text.partition(" ")[0]]
        rows, seen = scorer.encoder.prompts(prompts), {}
        composition = Composition("c", tuple(two), router)

        def look(path, present, gates, seen=seen, j=j):
            seen.setdefault(path, []).append(gates[:, -1, j])

        with torch.no_grad(), composed(scorer.model, composition, look):
            generate_batch(scorer.model, rows, pad=0, stops=[], max_new_tokens=3)
        found = torch.stack([torch.stack(gates) for gates in seen.values()])
        assert found.shape == (3, 3, len(prompts)) and bool((found == 1).all())


def test_route_fits_and_refuses_to_guess(scorer, pair, items):
    model, tokenizer, prompts = scorer.model, scorer.tokenizer, items[1]
    ids = torch.tensor(scorer.encoder.prompts(["Who is the spouse of Stakri?"]))
    spec = "hard:by=centroid,per=sequence"
    with torch.no_grad():
        with loraprobe.route(model, pair, router=spec, prompts=prompts, tokenizer=tokenizer):
            routed = model(input_ids=ids).logits
        with loraprobe.route(model, pair[:1], router="arrow"):
            alone = model(input_ids=ids).logits
    assert float((routed - alone).norm() / alone.norm()) < 1e-4
    for options in ({}, {"prompts": prompts}, {"tokenizer": tokenizer}):
        with pytest.raises(UsageError, match=r"give prompts=\{'spouse'"):
            loraprobe.route(model, pair, router="centroid", **options)
    with pytest.raises(UsageError, match="none of the adapters"):
        loraprobe.route(model, pair, router="centroid", prompts={"x": ["y"]}, tokenizer=tokenizer)
    with pytest.raises(UsageError, match="none of city"):
        loraprobe.route(
            model, pair, router="centroid", prompts={"spouse": ["y z"]}, tokenizer=tokenizer
        )
    with pytest.raises(UsageError, match="learns nothing"):
        loraprobe.route(model, pair, router="arrow", prompts=prompts, tokenizer=tokenizer)


def test_prompts_come_from_files_or_from_the_adapter_and_are_no_items(
    scorer, pair, items, tmp_path
):
    task, prompts = items
    leaked = [task.items[0].prompt.upper(), "Please: " + task.items[1].hop_prompt(0)]
    files = files_of({"spouse": prompts["spouse"] + leaked}, tmp_path)
    options = Options(routers=("centroid",), router_prompts=files)
    found, note = gather_prompts(pair, options, scorer, [task])
    assert found["spouse"] == prompts["spouse"]
    assert 1 <= len(found["city"]) <= 32 and all(isinstance(p, str) for p in found["city"])
    assert "30 prompts for spouse (of spouse.txt)" in note and "it wrote itself" in note
    assert "items of the tasks were left out" in note and "tell a router more" in note
    again, _ = gather_prompts(pair, options, scorer, [task])
    assert again == found  # seeded
    only = files_of({"spouse": leaked}, tmp_path)
    options = Options(routers=("centroid",), router_prompts=only)
    with pytest.raises(UsageError, match="Every prompt of adapter spouse"):
        gather_prompts(pair, options, scorer, [task])


def test_wrong_prompt_files_are_refused_with_the_cure(scorer, pair, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xfa")
    for name, file, match in (
        ("spouse", "empty.txt", "holds no prompt"),
        ("spouse", "bytes.txt", "UTF-8"),
        ("nobody", "empty.txt", "none of the adapters"),
    ):
        options = Options(routers=("centroid",), router_prompts=((name, tmp_path / file),))
        with pytest.raises(UsageError, match=match):
            fit_routers(pair, Transformed(pair), options, scorer, plan_of(options, pair))
    options = Options(router_prompts=(("spouse", tmp_path / "empty.txt"),))
    assert (
        "no router asked for" in fit_routers(pair, Transformed(pair), options, scorer, Plan())[1][0]
    )


def test_routers_of_one_run_learn_once_and_keep_their_options(scorer, pair, items, tmp_path):
    files = files_of(items[1], tmp_path)
    specs = ("centroid", "arrow", "hard:by=centroid", "centroid:top_k=1,per=sequence")
    options = Options(routers=specs, router_prompts=files)
    fitted, (note,) = fit_routers(
        pair, Transformed(pair), options, scorer, plan_of(options, pair, [items[0]])
    )
    assert "tell a router more" not in note
    assert note.startswith("centroid, hard:by=centroid and centroid:top_k=1,per=sequence learned")
    assert set(fitted) == set(specs) - {"arrow"}
    states = [router.state() for router in fitted.values()]
    assert all(
        torch.equal(state[f"centroid.{PATH}"], states[0][f"centroid.{PATH}"]) for state in states
    )
    last = fitted[specs[-1]]
    assert (last.top_k, last.per, last.needs_prompts) == (1, "sequence", False)
    builder = SystemBuilder(pair, Transformed(pair), options, routers=fitted)
    built = builder.build("hard:by=centroid")
    assert built.composition.router is fitted["hard:by=centroid"]
    assert fit_routers(pair, Transformed(pair), Options(), scorer, Plan()) == ({}, [])


def test_gates_are_counted_token_by_token():
    tally = GateTally(3)
    tally.see(torch.tensor([[0, 1, 1], [0, 1, 0]]).bool())
    gates = torch.tensor([[[9.0, 9], [1, 0], [0.5, 0.5]], [[9, 9], [0.25, 0.75], [9, 9]]])
    tally.add("a.0.q", (0, 2), gates)
    tally.add("a.0.q", (0, 2), gates.reshape(6, 2))  # flattened rows are the same tokens
    sums = tally.modules["a.0.q"]
    third = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    entropies = [math.log(2) + third, 1 + third / math.log(2)]
    assert sums.tolist() == pytest.approx([2 * x for x in (1.75, 0, 1.25, *entropies, 3)])
    tally.add("alone", (1,), torch.ones(2, 3, 1))
    tally.add("head", (0, 1), torch.ones(2, 1, 2))
    assert set(tally.modules) == {"a.0.q"}


def test_gate_statistics_are_those_of_the_composed_model(scorer, pair, items):
    """One prompt, against the gates of a pass of one's own."""
    task = Task("t", (Item("1", "Where does the spouse of Stakri live?", ("x",)),))
    arrow = Composition("arrow", tuple(pair), ROUTERS.make("arrow"))
    constant = Composition("uniform", tuple(pair), ROUTERS.make("constant"))
    systems = [
        System("base", "base"),
        System("arrow", "router", arrow),
        System("uniform", "merge", constant),
    ]
    rows, note = gate_statistics(scorer, systems, [task])
    seen = {}
    ids = torch.tensor(scorer.encoder.prompts([task.items[0].prompt]))
    with torch.no_grad(), composed(scorer.model, arrow, lambda p, i, g: seen.update({p: g[0]})):
        scorer.model(input_ids=ids)
    (row,) = rows
    assert row.system == "arrow" and "1 prompts" in note
    own = [g.double() for g in seen.values()]
    assert (row.modules, row.n) == (len(own), ids.shape[1])
    mean = torch.stack([g.mean(0) for g in own]).mean(0)
    assert list(row.share.values()) == pytest.approx(mean.tolist(), abs=1e-6)
    entropy = torch.stack([-(g * g.log()).sum(-1).mean() for g in own]).mean()
    assert row.entropy == pytest.approx(float(entropy), abs=1e-6)
    assert row.entropy_share == pytest.approx(row.entropy / math.log(2))
    assert sum(row.share.values()) == pytest.approx(1)
    few, note = gate_statistics(scorer, systems, [items[0]], most=5)
    again, _ = gate_statistics(scorer, systems, [items[0]], most=5)
    assert few == again and "5 of 60 prompts" in note
    assert gate_statistics(scorer, systems[:1], [task]) == ((), "")


def test_merge_and_eval_fits_and_reports_gates(items, tmp_path):
    """With prompts in the tasks' form, one adapter a prompt keeps both skills."""
    world = shipped_world()
    chosen = world.scenario("disjoint")
    refs = [f"{name}={path}" for name, path in chosen.adapters.items()]
    prompts = [f"--router-prompts={name}={file}" for name, file in files_of(items[1], tmp_path)]
    router = "hard:by=centroid,per=sequence"
    asked = ["--base", world.base, "--task", chosen.tasks[0], "--router", router, *prompts]
    options = "--router arrow:per=sequence --limit 10 --threads 1 --exit-zero --json"
    environment = {"LORAPROBE_CACHE": str(tmp_path / "cache")}
    result = call("merge-and-eval", *refs, *asked, *options.split(), env=environment)
    assert result.exit_code == 0, result.stderr
    document = json.loads(result.stdout)
    jsonschema.validate(document, json_schema())
    scores = {(row["system"], row["part"]): row["value"] for row in document["evaluation"]}
    assert scores[router, "hop1"] == scores[router, "hop2"] == 1.0
    assert {row["system"] for row in document["gates"]} == {router, "arrow:per=sequence"}
    whole = next(row for row in document["gates"] if row["system"] == router)
    assert whole["entropy"] == 0.0 and sum(whole["share"].values()) == pytest.approx(1)
    assert any("learned from 30 prompts for spouse" in note for note in document["notes"])


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
    loaded = open_base(world.base, "world").load()
    tasks = [load_task(path, 60) for path in scenario.tasks]
    return Scorer(loaded.model, loaded.tokenizer), adapters, tasks


def loss_of(scorer, adapters, tasks) -> float:
    """Nats a token of the likeliest gold answers under the sum of the adapters, merged."""
    merged = merge(adapters, "sum", dtype=torch.float32).adapter
    with scorer.with_composition(single(merged)):
        means = [
            -sum(
                max(scorer.loglikelihood([(i.prompt, a)])[0].per_token for a in i.answers)
                for i in task.items
            )
            / len(task.items)
            for task in tasks
        ]
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
        ([(f"q{i}", "one") for i in range(40)], "40 items in 1 clusters"),
    ],
)
def test_a_task_too_small_to_split_is_an_error(items, said):
    with pytest.raises(TaskError, match=said):
        split_for_weights([task_of("t", items)], LEARN)


@pytest.mark.parametrize("options", [LEARN, PER_LAYER])
def test_learned_weights_are_good_where_nothing_was_learned(bench, options):
    """Their loss is that of the merged adapter, here and elsewhere."""
    scorer, adapters, tasks = bench
    parted, told = split_for_weights(tasks, options), []
    found = learn(scorer, adapters, parted, options, progress=lambda *step: told.append(step))
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
    assert all(abs(w) <= BOUND and w == round(w, 4) for w in flat)
    made = scaled_by_layer(adapters, layers)
    assert found.loss == pytest.approx(loss_of(scorer, made, parted.apart), rel=1e-4)
    shrinking = SHRINK * sum(map(abs, flat)) / len(flat)
    assert found.objective == pytest.approx(found.loss + shrinking, rel=1e-6)
    half = scaled_by_layer(adapters, dict.fromkeys(layers, (0.5, 0.5)))
    assert found.uniform - SHRINK / 2 == pytest.approx(
        loss_of(scorer, half, parted.apart), rel=1e-4
    )
    assert found.objective < found.uniform - 0.5
    elsewhere = [loss_of(scorer, one, parted.left) for one in (made, half, adapters)]
    assert elsewhere[0] < min(elsewhere[1:])


def test_two_answers_and_several_tasks_count_as_they_should(bench):
    scorer, adapters, tasks = bench
    one, two = (item.answers[0] for item in tasks[0].items[:2])
    answers = ((f"{one} {two} {one}",), (two, f"{one} {one}"), (one,))
    items = [Item(str(i), tasks[0].items[i].prompt, own) for i, own in enumerate(answers)]
    parted = TaskSplit((Task("long", tuple(items[:2])), Task("short", tuple(items[2:]))), ())
    found = learn(scorer, adapters, parted, LEARN)
    half = scaled_by_layer(adapters, {layer_of(p): (0.5, 0.5) for p in adapters[0].layout})
    assert found.uniform - SHRINK / 2 == pytest.approx(
        loss_of(scorer, half, parted.apart), rel=1e-4
    )


def test_a_run_that_is_resumed_learns_nothing_again(bench, tmp_path, monkeypatch):
    scorer, adapters, tasks = bench
    parted, path = split_for_weights(tasks, PER_LAYER), tmp_path / "learned.jsonl"
    monkeypatch.setattr(fitting, "LEARNING_STEPS", 2)
    found = learn(scorer, adapters, parted, PER_LAYER, path=path)
    assert learn(scorer, adapters, parted, PER_LAYER) == found
    assert learn(None, adapters, parted, PER_LAYER, path=path, resume=True) == found
    head = path.read_bytes().splitlines(keepends=True)[0]
    path.write_bytes(head + b'{"weights": 1.0}\n')
    with pytest.raises(OutputError, match="line 2"):
        learn(None, adapters, parted, PER_LAYER, path=path, resume=True)


def test_adapters_without_a_gate_to_differentiate_by_are_refused():
    plain, scaled = making.random_adapter("plain"), dora("scaled", 1)
    check_learnable([plain, scaled], LEARN)
    with pytest.raises(UnsupportedAdapter, match="scaled"):
        check_learnable([plain, scaled], PER_LAYER)


def test_merge_and_eval_judges_on_the_rest(tmp_path):
    world = shipped_world()
    scenario = world.scenario("skill-and-facts")
    refs = [f"{name}={path}" for name, path in scenario.adapters.items()]
    (task,) = scenario.tasks
    options = (
        "--json --limit 32 --weights learn --system task-arithmetic "
        "--system random-partner --metric answer_loss --margin 0.1"
    )
    arguments = ["merge-and-eval", *refs, "--task", task, "--base", world.base, *options.split()]
    environment = {"LORAPROBE_CACHE": str(tmp_path)}
    document = json.loads(making.call(*arguments, env=environment).stdout)
    jsonschema.validate(document, json_schema())
    found = document["search"]
    parted = split_for_weights([load_task(task, 32)], LEARN)
    assert (found["items"], found["left"]) == (8, 24) == parted.items
    assert found["evaluations"] == LEARNING_STEPS and found["layers"] == {}
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
    assert (ledger.parent / "learned.jsonl").is_file()


def test_unsupported_methods_and_methods_without_weights():
    adapters = [making.random_adapter(name, seed=seed) for seed, name in enumerate("ab")]

    def options(*methods):
        return Options(methods=methods, routers=(), weights="learn")

    def systems(*methods):
        transformed, chosen = Transformed(tuple(adapters)), options(*methods)
        found = LearnedWeights({"a": 0.3, "b": -0.2}, 1.0, 1.0, 1.0, 1, 1, 1, 1)
        builder = SystemBuilder(adapters, transformed, chosen, learned=found)
        return [builder.build(spec) for spec in plan_of(chosen, adapters).specs]

    assert [s.name for s in systems("uniform")] == ["uniform", "task_arithmetic"]
    built = {s.name: s.composition for s in systems("uniform", "ties")}
    assert list(built) == ["uniform", "ties"]
    wanted = merge(adapters, "ties", weights=(0.3, -0.2)).adapter
    path = next(iter(wanted.modules))
    assert torch.equal(built["ties"].experts[0].modules[path].A, wanted.modules[path].A)
    added = systems("uniform")[1].composition
    assert added.router.weights == (0.3, -0.2)


@pytest.mark.parametrize("weights", ["learn", "learn:per=layer"])
def test_a_merge_with_learned_weights_is_an_adapter_that_verify_repeats(
    tmp_path, weights, monkeypatch
):
    monkeypatch.setattr(fitting, "LEARNING_STEPS", 8)
    world = shipped_world()
    scenario = world.scenario("skill-and-facts")
    paths = list(scenario.adapters.values())
    (task,) = scenario.tasks
    call = ["merge", *paths, "--weights", weights, "-o", tmp_path / "out", "--json"]
    call += ["--method", "task-arithmetic", "--base", world.base, "--task", task, "--limit", "16"]
    result = making.call(*call)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    jsonschema.validate(document, json_schema())
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
