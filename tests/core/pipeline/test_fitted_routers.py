"""Routers that learn from prompts, on the world that ships."""

from __future__ import annotations

import pytest
import torch
from making import document, random_adapter, shipped, tiny_model
from tokenizers import processors

import loraprobe
from loraprobe.adapters import read_adapter
from loraprobe.base import load_base, open_base
from loraprobe.composition import Composition, composed, watched
from loraprobe.errors import UsageError
from loraprobe.options import Options
from loraprobe.pipeline.fitting import fit_routers, fitted_in, gather_prompts
from loraprobe.pipeline.plan import Fitted, Plan, SystemBuilder, plan_of
from loraprobe.pipeline.transforms import PreparedAdapters
from loraprobe.records import BY_PROMPT
from loraprobe.routing import ROUTERS
from loraprobe.scoring import ModelScorer
from loraprobe.scoring.generation import generate_batch
from loraprobe.tasks import Task, load_task
from loraprobe_lab import shipped_world
from loraprobe_lab.training import build_tokenizer

PATH = "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def scorer():
    loaded = load_base(
        open_base(shipped_world().base), device=torch.device("cpu"), dtype=torch.float32
    )
    return ModelScorer(loaded.model, loaded.tokenizer)


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
    scorer = ModelScorer(model, tokenizer, chat_template=form == "chat")
    asked = {"a": "car of {} :", "b": "pet of {} :"}
    taught = {name: [text.format(n) for n in NAMES[:12]] for name, text in asked.items()}
    router = ROUTERS.make("hard:by=centroid,per=sequence").fit(scorer, two, taught)
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
            fit_routers(pair, PreparedAdapters(pair), options, scorer, plan_of(options, pair))
    options = Options(router_prompts=(("spouse", tmp_path / "empty.txt"),))
    (note,) = fit_routers(pair, PreparedAdapters(pair), options, scorer, Plan()).notes
    assert "no router asked for" in note


def test_routers_of_one_run_learn_once_and_keep_their_options(scorer, pair, items, tmp_path):
    files = files_of(items[1], tmp_path)
    specs = ("centroid", "arrow", "hard:by=centroid", "centroid:top_k=1,per=sequence")
    options = Options(routers=specs, router_prompts=files)
    fitted = fit_routers(
        pair, PreparedAdapters(pair), options, scorer, plan_of(options, pair, [items[0]])
    )
    (note,), routers = fitted.notes, fitted.routers
    assert "tell a router more" not in note
    assert note.startswith("centroid, hard:by=centroid and centroid:top_k=1,per=sequence learned")
    assert set(routers) == set(specs) - {"arrow"}
    states = [router.state() for router in routers.values()]
    assert all(
        torch.equal(state[f"centroid.{PATH}"], states[0][f"centroid.{PATH}"]) for state in states
    )
    last = routers[specs[-1]]
    assert (last.top_k, last.per, last.needs_prompts) == (1, "sequence", False)
    builder = SystemBuilder(pair, PreparedAdapters(pair), options, fitted=fitted)
    built = builder.build("hard:by=centroid")
    assert built.composition.router is routers["hard:by=centroid"]
    assert fit_routers(pair, PreparedAdapters(pair), Options(), scorer, Plan()) == Fitted()


def test_merge_and_eval_fits_routers(items, tmp_path):
    """With prompts in the tasks' form, one adapter a prompt keeps both skills."""
    prompts = [f"--router-prompts={name}={file}" for name, file in files_of(items[1], tmp_path)]
    router = "hard:by=centroid,per=sequence"
    options = "--limit 10 --exit-zero"
    asked = [*shipped("disjoint"), "--router", router, *prompts, *options.split()]
    found = document("merge-and-eval", *asked)
    router = BY_PROMPT  # the name of what was typed
    scores = {(row["system"], row["part"]): row["value"] for row in found["evaluation"]}
    assert scores[router, "hop1"] == scores[router, "hop2"] == 1.0
    assert any("learned from 30 prompts for spouse" in note for note in found["notes"])
