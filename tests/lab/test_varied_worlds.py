"""Fact worlds with many adapter sets, and the atlas of them."""

import dataclasses

import pytest
from tiny_worlds import shortened, tiny_base

from loraprobe.hub import load_all
from loraprobe_lab.training import layers_of, load_base
from loraprobe_lab.worlds.couples import FactSizes, make_facts
from loraprobe_lab.worlds.spec import WorldSpec, build_world
from loraprobe_lab.worlds.varied import STRATA, facts_world

SIZES = FactSizes(familiar=24, newcomers=12, strangers=12, cities=6, reserve=4)


def spec(seed: int = 1, **options) -> WorldSpec:
    return facts_world(seed, sizes=SIZES, items=20, **options)


def test_the_share_of_familiar_second_hops_is_what_the_axis_says():
    for seed in range(1, 5):
        made = spec(seed, wide=2, classes=("skill-and-facts",))
        known = {link.b for link in make_facts(SIZES, seed).familiar}
        for chosen in made.adapter_sets:
            hops = [item["hops"][0]["answer"] in known for item in made.tasks[chosen.name]]
            assert sum(hops) / len(hops) == pytest.approx(chosen.axes["familiar"], abs=0.05)


def test_no_newcomer_is_told_of_in_pretraining():
    made, facts = spec(5, worked=0.2), make_facts(SIZES, 5)
    draw = made.corpus(0)
    told = [f"{e.prompt} {e.completion}" for e in (draw() for _ in range(2000))]
    for link in facts.newcomers[:5]:
        mentions = [text for text in told if f" {link.a}" in f" {text}"]
        assert mentions and all(" met " in text for text in mentions)


def test_worked_bases_read_worked_steps_and_others_do_not():
    def steps(share: float) -> int:
        draw = spec(2, worked=share).corpus(0)
        return sum("step by step" in draw().prompt for _ in range(500))

    assert steps(0.0) == 0
    assert 50 < steps(0.2) < 150


def test_seeds_go_through_all_libraries_and_pairs():
    sets = [t for seed in range(1, 10) for t in spec(seed, wide=2).adapter_sets]
    assert {t.axes["library"] for t in sets if "library" in t.axes} == set(STRATA["wide"].libraries)
    assert {t.axes["pair"] for t in sets if "pair" in t.axes} == {
        "+".join(p) for p in STRATA["wide"].pairs
    }


def test_favourable_sets_follow_and_leave_the_others_as_they_are():
    wide, more = spec(3, wide=2), spec(3, wide=2, favourable=1)
    assert more.adapter_sets[: len(wide.adapter_sets)] == wide.adapter_sets
    assert more.training[: len(wide.training)] == wide.training
    assert more.made_from == wide.made_from
    added = more.adapter_sets[len(wide.adapter_sets) :]
    assert {t.axes["stratum"] for t in added} == {"favourable"} and len(added) == 3
    assert not {t.name for t in added} & {t.name for t in wide.adapter_sets}


@pytest.mark.parametrize(
    ("architecture", "model_type", "norms"),
    [("llama", "llama", 2), ("qwen3", "qwen3", 4), ("gemma3", "gemma3_text", 6)],
)
def test_a_base_of_each_shape_is_built(architecture, model_type, norms, tmp_path):
    """Qwen's blocks also normalise queries and keys; Gemma's also what attention and MLP give."""
    made = shortened(spec(1, wide=1, base=tiny_base(architecture)), 1, 4)
    built = build_world(dataclasses.replace(made, training=made.training[:1]), tmp_path)
    model, _ = load_base(built.base)
    assert model.config.model_type == model_type
    block = layers_of(model)[0]
    assert sum(type(part).__name__.endswith("Norm") for part in block.modules()) == norms
    (adapter,) = load_all([str(path) for path in built.adapters.values()])
    assert adapter.modules
