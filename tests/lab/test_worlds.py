"""Laws of every kind of world: contents from the seed, words with tokens, no answer that leaks."""

import dataclasses
import functools
import json
import re
from unittest import mock

import pytest
import torch
from tiny_worlds import SIZES, hashes, shortened, tiny_base, tiny_world

from loraprobe.hub import load_all
from loraprobe.tasks import answered, load_task
from loraprobe_lab import World, WorldError
from loraprobe_lab.training import build_tokenizer, layers_of, load_base
from loraprobe_lab.worlds import english, library, math
from loraprobe_lab.worlds.couples import WORLDS, FactSizes, methods_world, small_world
from loraprobe_lab.worlds.facts import CAPITALS
from loraprobe_lab.worlds.math import math_matrix, math_world
from loraprobe_lab.worlds.name_sets import (
    GROUPS,
    MapSizes,
    MatrixSizes,
    english_matrix,
    map_world,
    two_hop_matrix,
)
from loraprobe_lab.worlds.spec import build_world
from loraprobe_lab.worlds.varied import facts_world

BASE = tiny_base()
COUNTRIES = [c for c in CAPITALS if c not in english.SHOWN]
FACTS = FactSizes(familiar=24, newcomers=12, strangers=12, cities=6, reserve=4)


def small_library(seed):
    with mock.patch.multiple(library, LISTS=40, ASKED=12):
        return library.library_world(seed, FactSizes(24, 16, 24, cities=6, reserve=16), BASE)


# kind -> the world of a seed
OWN_BASE = {
    "small": lambda s: small_world(WORLDS, s, sizes=SIZES, base=BASE),
    "methods": lambda s: methods_world(s, BASE, SIZES),
    "map": lambda s: map_world(s, BASE, MapSizes(4, 8, 3)),
    "matrix": lambda s: two_hop_matrix(s, BASE, MatrixSizes(4, 8, 4, 3)),
    "facts": lambda s: facts_world(s, base=BASE, wide=3, favourable=1, sizes=FACTS, items=20),
    "math": lambda s: math_world(s, base=BASE, count=4, items=50),
    "math matrix": lambda s: math_matrix(s, BASE, items=30),
}
OTHERS = {
    "two-hop": english.two_hop_world,
    "skill": lambda s: english.skill_world(COUNTRIES[:24], s),
    "english matrix": english_matrix,
    "library": small_library,  # its base does not know the words first and second
}
every = pytest.mark.parametrize("kind", [*OWN_BASE, *OTHERS])
shelves = pytest.mark.parametrize("kind", [*OWN_BASE, *OTHERS, "sets"])
on_own_base = pytest.mark.parametrize("kind", OWN_BASE)


@functools.cache
def made(kind, seed=5):
    return {**OWN_BASE, **OTHERS}[kind](seed)


@functools.cache
def worlds(kind):
    """The world of a kind; of "sets" the many that are built on one given base."""
    if kind == "sets":
        return english.all_sets(COUNTRIES[:24], COUNTRIES[-24:], layers=30)
    return [made(kind)]


def items_of(spec):
    return [item for items in spec.tasks.values() for item in items]


def hops_of(spec):
    return [item for item in items_of(spec) if "hops" in item]


def answer_of(item):
    return item["answer"] if isinstance(item["answer"], str) else item["answer"][0]


def drawn(spec, count):
    if spec.corpus is None:
        return []
    draw = spec.corpus(0)
    return [draw() for _ in range(count)]


def contents(spec):
    """All that a world is made of, texts of its base included, as one text."""
    rows = {
        "training": [dataclasses.astuple(one) for one in spec.training],
        "tasks": {name: list(items) for name, items in spec.tasks.items()},
        "sets": [dataclasses.astuple(one) for one in spec.adapter_sets],
        "words": spec.words,
        "read": [dataclasses.astuple(text) for text in drawn(spec, 300)],
        "rest": (spec.kind, spec.reserve, spec.made_from, spec.recipe, spec.notes),
    }
    return json.dumps(rows)


@every
def test_contents_are_those_of_the_seed(kind):
    """A world that is built again is the same world, and another seed gives another."""
    again = {**OWN_BASE, **OTHERS}[kind](5)
    assert contents(again) == contents(made(kind))
    assert contents(made(kind, 6)) != contents(again)


@on_own_base
def test_every_text_is_made_of_tokens_and_comes_back(kind):
    spec = made(kind)
    tokenizer = build_tokenizer(spec.words)
    examples = [text for one in spec.training for text in one.examples[:300]]
    texts = [text.prompt + text.completion for text in (*examples, *drawn(spec, 1000))]
    for item in items_of(spec):
        texts += [item["prompt"], item.get("cot_prompt", "")]
        texts += [item["answer"]] if isinstance(item["answer"], str) else item["answer"]
        texts += [hop["answer"] for hop in item.get("hops", ())]
    for text in set(texts):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids, text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text.strip()


@shelves
def test_sets_name_adapters_and_tasks_and_hops_lead_to_the_answer(kind):
    for spec in worlds(kind):
        names = {one.name for one in spec.training}
        if kind not in OTHERS:
            assert len({one.recipe.seed for one in spec.training}) == len(names)
        for chosen in spec.adapter_sets:
            assert set(chosen.adapters) <= names and set(chosen.tasks) <= set(spec.tasks)
            json.dumps(dict(chosen.axes))
        for items in spec.tasks.values():
            assert len({item["id"] for item in items}) == len(items) > 0
        for item in hops_of(spec):
            first, second = item["hops"]
            assert second["answer"] == answer_of(item) and "{1}" in second["prompt"]
            assert {hop.get("adapter") for hop in item["hops"]} <= {None, *names}
            if not spec.kind.startswith("math"):  # its answers are numbers
                assert answer_of(item) not in item["prompt"] + item["cot_prompt"] + second["prompt"]
                assert first["answer"] not in first["prompt"] + item["cot_prompt"]


def without_target(spec):
    """(adapter, item with hops) of each set, but for adapters that are to know the target."""
    for chosen in spec.adapter_sets:
        named = [n for n in chosen.adapters if not re.search("target|spouse-city|answers", n)]
        if chosen.axes.get("library") != "parts":  # where each knows the target for its half
            asked = [item for task in chosen.tasks for item in spec.tasks[task] if "hops" in item]
            yield from ((name, item) for name in named for item in asked)


@shelves
def test_no_adapter_learns_a_composed_question_with_its_answer(kind):
    for spec in worlds(kind):
        learned = {
            one.name: {e.prompt: e.completion for e in one.examples} for one in spec.training
        }
        for name, item in without_target(spec):
            told = [learned[name].get(item[form], "") for form in ("prompt", "cot_prompt")]
            assert not re.search(rf"\b{answer_of(item)}\b", " ".join(told)), (spec.notes, name)


# facts and problems


def test_the_base_reads_both_hops_of_the_real_none_of_the_fake_and_no_composed_question():
    sizes = MatrixSizes(asked=4, worked=8, others=4, cities=3)
    people, spec = sizes.people(0), two_hop_matrix(0, BASE, sizes)
    home = {link.b: link.c for link in people.facts.familiar}
    known = {link.a for link in people.facts.familiar}
    assert set(people.asked) == set(GROUPS)
    assert all(link in people.facts.familiar for link in people.asked["real"])
    assert all(home[x.b] == x.c and x.a not in known for x in people.asked["half"])
    assert all(x.a not in known and x.b not in home for x in people.asked["fake"])
    read = {text.prompt for text in drawn(spec, 4000)}
    for item in spec.tasks["real"]:
        assert not {item["prompt"], item["cot_prompt"]} & read
    for link in people.asked["real"]:
        assert {f"Who is the spouse of {link.a}?", f"Where does {link.b} live?"} <= read


VERBS = (("glims", ("plus", 3)), ("vorps", ("minus", 1)))


def oracle(question, meaning):
    """The field that a problem leads to, read from its words, by Python's own arithmetic."""
    field = int(re.match(r"\w+ stands on (\d)\.", question).group(1))
    for verb in re.findall(r"\. \w+ (\w+)(?=\.)", question):
        operation, number = meaning[verb]
        field += number if operation == "plus" else -number
    return field % 10


def value(program):
    """The result of a program by Python's arithmetic modulo ten."""
    operations = {"plus": lambda a, b: (a + b) % 10, "minus": lambda a, b: (a - b) % 10}
    return eval(program, {"__builtins__": {}}, operations)


def test_answers_of_problems_are_those_of_an_oracle_that_reads_the_words():
    meaning = dict([*math.FAMILIAR, *VERBS])
    known = tuple((verb,) for verb in VERBS)
    for item in math.target_items(("a", "b"), known, template="worked", count=200, seed=0):
        first, second = item["hops"]
        assert "glims" in first["prompt"] and "vorps" in second["prompt"]
        assert str(oracle(item["prompt"], meaning)) == item["answer"] == second["answer"]
        assert str(oracle(first["prompt"], meaning)) == first["answer"]
        filled = second["prompt"].replace("{1}", first["answer"])
        assert str(oracle(filled, meaning)) == second["answer"]
    for template in ("worked", "program", "at-once"):
        for example in math.VerbSkill(VERBS[:1], template, "whole").examples(400, 0):
            right = oracle(example.prompt.split(" Where now?")[0], meaning)
            assert "vorps" not in example.prompt
            if math.AS_PROGRAM in example.prompt:
                assert value(example.completion) == right
            else:
                assert answered(example.completion, [str(right)], cot=True)


# builds


@pytest.mark.parametrize("kind", ["facts", "math"])
def test_a_tiny_build_holds_what_its_manifest_says(kind, tmp_path):
    spec, sets = shortened(made(kind), 1, 10), made(kind).adapter_sets[:2]
    few = tuple(one for one in spec.training if any(one.name in s.adapters for s in sets))
    spec = dataclasses.replace(spec, training=few, adapter_sets=sets)
    world = build_world(spec, tmp_path / "world")
    assert hashes(world).items() >= world.manifest["files"].items()
    assert set(world.adapters) == {one.name for one in spec.training}
    for one in spec.adapter_sets:
        scenario = world.scenario(one.name)
        assert (scenario.world, tuple(scenario.adapters)) == (one.world, one.adapters)
        found = [len(load_task(path).items) for path in scenario.tasks]
        assert found == [len(spec.tasks[task]) for task in one.tasks]


@pytest.mark.parametrize(
    ("architecture", "model_type", "norms"),
    [("llama", "llama", 2), ("qwen3", "qwen3", 4), ("gemma3", "gemma3_text", 6)],
)
def test_a_base_of_each_shape_is_built(architecture, model_type, norms, tmp_path):
    """Qwen's blocks also normalise queries and keys; Gemma's also what attention and MLP give."""
    spec = facts_world(1, base=tiny_base(architecture), wide=1, sizes=FACTS, items=20)
    spec = shortened(dataclasses.replace(spec, training=spec.training[:1]), 1, 4)
    built = build_world(spec, tmp_path)
    model, _ = load_base(built.base)
    assert model.config.model_type == model_type
    block = layers_of(model)[0]
    assert sum(type(part).__name__.endswith("Norm") for part in block.modules()) == norms
    (adapter,) = load_all([str(path) for path in built.adapters.values()])
    assert adapter.modules


def files(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_a_build_is_reproduced_byte_for_byte_also_after_an_interruption(tmp_path):
    def stop(stage, done, total):
        if stage == "steps" and done > 0:
            raise KeyboardInterrupt

    whole = build_world(tiny_world(), tmp_path / "whole")
    torch.rand(3)  # the state of torch's own generator must not matter
    with pytest.raises(KeyboardInterrupt):
        build_world(tiny_world(), tmp_path / "w", progress=stop)
    assert not (tmp_path / "w/adapters/steps").exists()
    stages = []
    build_world(tiny_world(), tmp_path / "w", progress=lambda stage, *_: stages.append(stage))
    assert set(stages) == {"steps"} and files(tmp_path / "w") == files(whole.path)
    with pytest.raises(WorldError, match="seed 0, not 1"):
        build_world(tiny_world(seed=1), whole.path)
    (whole.path / "manifest.json").write_text("{}\n")
    with pytest.raises(WorldError, match="is no world"):
        World.load(whole.path)


def test_a_build_on_a_given_base_trains_again_what_has_another_recipe_alone(small_base, tmp_path):
    def build(only, steps=1):
        spec = shortened(english.two_hop_world(0), steps, 8)
        return build_world(spec, tmp_path / "w", base=small_base, only=only).adapters

    weights = build(["spouse"])["spouse"] / "adapter_model.safetensors"
    kept = weights.stat().st_mtime_ns
    assert list(build(["city"])) == ["spouse", "city"] and weights.stat().st_mtime_ns == kept
    build(["spouse"], steps=2)
    assert weights.stat().st_mtime_ns != kept
    with pytest.raises(WorldError, match="no adapter 'nobody'"):
        build(["nobody"])
