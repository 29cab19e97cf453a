"""The world inside the package: whole, loadable, and with the outcomes that it states."""

import dataclasses
import json

import pytest
import torch
from tiny_worlds import hashes

from loraprobe.tasks import load_task
from loraprobe_lab import measure as measuring
from loraprobe_lab import shipped_world
from loraprobe_lab.training import load_base
from loraprobe_lab.worlds.couples import SHIPPED, small_world


def read_outcomes(world):
    return json.loads((world.path / measuring.OUTCOMES).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def world():
    return shipped_world()


@pytest.fixture(scope="module")
def stated(world):
    rows = read_outcomes(world)
    return {(r["scenario"], r["system"], r["task"], r["part"]): r["value"] for r in rows}


def test_every_file_is_the_one_of_the_manifest_and_there_is_no_other(world):
    found, named = hashes(world), world.manifest["files"]
    assert found.keys() - named.keys() == {"manifest.json", "outcomes.json"}
    assert found.items() >= named.items()
    assert set(world.scenarios) == set(SHIPPED)
    assert set(world.adapters) == {name for s in world.scenarios.values() for name in s.adapters}


def test_its_specification_makes_what_its_manifest_says(world):
    """Everything that is not trained follows from the seed: tasks byte for byte, recipes, names."""
    spec, manifest = small_world(only=SHIPPED), world.manifest
    told = tuple(manifest[key] for key in ("kind", "seed", "reserve"))
    assert (spec.kind, spec.seed, list(spec.reserve)) == told
    for task in {path for scenario in world.scenarios.values() for path in scenario.tasks}:
        lines = [json.dumps(item, ensure_ascii=False) for item in spec.tasks[task.stem]]
        assert task.read_text(encoding="utf-8") == "\n".join(lines) + "\n"
    newer = {"architecture": "llama"}  # keys that recipes have got since it was built
    recipe = json.loads(json.dumps(spec.recipe))
    assert recipe == {**manifest["recipe"], "base": {**manifest["recipe"]["base"], **newer}}
    for one in spec.training:
        row = manifest["adapters"][one.name]
        recipe = json.loads(json.dumps(dataclasses.asdict(one.recipe)))
        assert one.description == row["description"]
        assert recipe == {**row["recipe"], "kind": "lora", "upper": None}
    for one in spec.adapter_sets:
        scenario = world.scenario(one.name)
        assert tuple(scenario.adapters) == one.adapters
        assert [path.stem for path in scenario.tasks] == list(one.tasks)
        assert scenario.description == one.description


def test_every_adapter_loads_in_peft_and_does_something(world):
    from peft import PeftModel
    from safetensors.torch import load_file

    model, tokenizer = load_base(world.base)
    text = load_task(world.scenario("disjoint").tasks[0]).items[0].prompt
    prompt = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        before = model(**prompt).logits
        for path in world.adapters.values():
            wrapped = PeftModel.from_pretrained(model, str(path))
            stored = load_file(path / "adapter_model.safetensors")
            assert len(stored) == sum("lora_" in name for name, _ in wrapped.named_parameters())
            assert (wrapped(**prompt).logits - before).abs().max() > 0.1
            wrapped.unload()


def test_the_stated_outcomes_are_measured_again(world, stated):
    """Two systems of the success; the slow test measures them all on a fresh build."""
    every = measuring.default_systems(["newcomers", "steps"])
    systems = {name: every[name] for name in ("newcomers", "sum")}
    for row in measuring.measure(world.scenario("skill-and-facts"), world.base, systems=systems):
        said = stated["skill-and-facts", row["system"], row["task"], row["part"]]
        assert row["value"] == pytest.approx(said, abs=0.03)


def test_what_each_scenario_is_meant_to_show_is_there(stated):
    """The demo's claims, read from the stated outcomes; none holds by definition."""

    def of(scenario, system, part, task="strangers"):
        return stated[scenario, system, task, part]

    for system in ("uniform", "sum"):
        assert of("disjoint", "spouse", "hop1") > 0.95 < of("disjoint", "city", "hop2")
        assert of("disjoint", system, "question") < 0.15 > of("disjoint", system, "steps")
        assert of("target-adapter", system, "question") < of(
            "target-adapter", "spouse-city", "question"
        )
    singles = ("base", "newcomers", "steps")
    gain = of("skill-and-facts", "sum", "steps", "newcomers")
    assert gain > 0.3 + max(of("skill-and-facts", s, "steps", "newcomers") for s in singles)
    controls = [s for sc, s, _, _ in stated if sc == "skill-and-facts" and ":" in s]
    assert gain > 0.3 + max(of("skill-and-facts", s, "steps", "newcomers") for s in controls)


@pytest.mark.slow
def test_the_world_is_built_again_from_its_seed(world, stated, tmp_path):
    """Other machines round differently, so figures may move; what they show may not."""
    again = measuring.build_shipped_world(tmp_path / "world")
    for row in read_outcomes(again):
        said = stated[row["scenario"], row["system"], row["task"], row["part"]]
        assert row["value"] == pytest.approx(said, abs=0.25), row
    rows = read_outcomes(again)
    test_what_each_scenario_is_meant_to_show_is_there(
        {(r["scenario"], r["system"], r["task"], r["part"]): r["value"] for r in rows}
    )
