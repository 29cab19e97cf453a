"""Laws of every kind of world: contents from the seed, words with tokens, no answer that leaks."""

import dataclasses
import functools
import json
import re
from unittest import mock

import pytest
from tiny_worlds import SIZES, shortened, tiny_base

from loraprobe.tasks import load_task
from loraprobe_lab.training import build_tokenizer
from loraprobe_lab.worlds import library
from loraprobe_lab.worlds.couples import WORLDS, FactSizes, methods_world, small_world
from loraprobe_lab.worlds.english import SHOWN, all_sets, skill_world, two_hop_world
from loraprobe_lab.worlds.facts import CAPITALS
from loraprobe_lab.worlds.math import math_matrix, math_world
from loraprobe_lab.worlds.name_sets import (
    MapSizes,
    MatrixSizes,
    english_matrix,
    map_world,
    two_hop_matrix,
)
from loraprobe_lab.worlds.spec import build_world
from loraprobe_lab.worlds.varied import facts_world

BASE = tiny_base()
COUNTRIES = [c for c in CAPITALS if c not in SHOWN]
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
    "two-hop": two_hop_world,
    "skill": lambda s: skill_world(COUNTRIES[:24], s),
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
        return all_sets(COUNTRIES[:24], COUNTRIES[-24:], layers=30)
    return [made(kind)]


def hops_of(spec):
    return [item for items in spec.tasks.values() for item in items if "hops" in item]


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
    for items in spec.tasks.values():
        for item in items:
            texts += [item["prompt"], item.get("cot_prompt", "")]
            texts += [item["answer"]] if isinstance(item["answer"], str) else item["answer"]
            texts += [hop["answer"] for hop in item.get("hops", ())]
    for text in set(texts):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids, text
        assert tokenizer.decode(ids, skip_special_tokens=True) == text.strip()


@pytest.mark.parametrize("kind", [*OWN_BASE, "sets"])
def test_no_two_adapters_share_a_seed(kind):
    training = [one for spec in worlds(kind) for one in spec.training]
    assert len({one.recipe.seed for one in training}) == len(training)


@shelves
def test_sets_name_adapters_and_tasks_and_hops_lead_to_the_answer(kind):
    for spec in worlds(kind):
        names = {one.name for one in spec.training}
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


@pytest.mark.parametrize("kind", ["facts", "math"])
def test_a_tiny_build_holds_what_its_manifest_says(kind, tmp_path):
    spec, sets = shortened(made(kind), 1, 10), made(kind).adapter_sets[:2]
    few = tuple(one for one in spec.training if any(one.name in s.adapters for s in sets))
    spec = dataclasses.replace(spec, training=few, adapter_sets=sets)
    world = build_world(spec, tmp_path / "world")
    world.verify()
    assert set(world.adapters) == {one.name for one in spec.training}
    for one in spec.adapter_sets:
        scenario = world.scenario(one.name)
        assert (scenario.world, tuple(scenario.adapters)) == (one.world, one.adapters)
        found = [len(load_task(path).items) for path in scenario.tasks]
        assert found == [len(spec.tasks[task]) for task in one.tasks]
