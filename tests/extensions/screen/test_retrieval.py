"""The signals by which the benchmark of retrieval chooses adapters without asking them, and what
the benchmark of screens reads of a screen that proves no set."""

import importlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import PeftModel
from planted_library import FIRST, SECOND, write_library

from loraprobe_lab.experiments.pairs import MergedBase
from loraprobe_lab.training import load_base
from loraprobe_lab.world import shipped_world

NAMES = ("newcomers", "steps")
PROMPTS = ("Who is the spouse of Sarum?", "Where does the spouse of Sarum live?")


@pytest.fixture(scope="module", autouse=True)
def benchmarks():
    """The modules of the benchmarks can be imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
        yield


@pytest.fixture(scope="module")
def retrieval(benchmarks):
    return importlib.import_module("retrieval")


@pytest.fixture(scope="module")
def read(retrieval):
    """What the shipped base gives to its layers, and two of its adapters."""
    world = shipped_world()
    model, tokenizer = load_base(world.base)
    deltas = MergedBase(world).deltas
    inputs = retrieval.last_inputs(model, tokenizer, PROMPTS)
    return world, inputs, [deltas[name] for name in NAMES]


def test_norms_are_those_of_what_peft_adds_at_the_last_token(retrieval, read):
    world, inputs, deltas = read
    modules = sorted({module for one in deltas for module in one})
    found = retrieval.norms(inputs, deltas, modules)
    for row, name in enumerate(NAMES):
        model, tokenizer = load_base(world.base)
        wrapped = PeftModel.from_pretrained(model, str(world.adapters[name]))
        layers = {
            path.removeprefix("base_model.model."): layer
            for path, layer in wrapped.named_modules()
            if hasattr(layer, "lora_A")
        }
        update = sum(one.get_delta_weight("default").square().sum() for one in layers.values())
        assert retrieval.update_norms(deltas)[row] == pytest.approx(float(update.sqrt()), rel=1e-4)
        for column, prompt in enumerate(PROMPTS):
            taken = {}
            hooks = [
                one.register_forward_pre_hook(
                    lambda _, x, p=path, to=taken: to.update({p: x[0][0, -1]})
                )
                for path, one in layers.items()
            ]
            with wrapped.disable_adapter(), torch.no_grad():
                wrapped(**tokenizer(prompt, return_tensors="pt"))
            for hook in hooks:
                hook.remove()
            parts = [layers[p].get_delta_weight("default") @ taken[p] for p in layers]
            expected = torch.cat(parts).norm()
            assert found[row, column] == pytest.approx(float(expected), rel=1e-4)


def test_a_sharp_output_has_a_larger_inverse_entropy_than_a_flat_one(retrieval):
    inputs = {"q": torch.eye(2)}
    sharp, flat = torch.zeros(4, 2), torch.zeros(4, 2)
    sharp[0] = 3.0
    deltas = [{"q": (one, torch.eye(2))} for one in (sharp, flat)] + [{}]
    found = retrieval.inverse_entropies(inputs, deltas, "q")
    p = np.exp([3.0, 0, 0, 0]) / np.exp([3.0, 0, 0, 0]).sum()
    expected = [-1 / (p * np.log(p)).sum(), 1 / np.log(4), 0]
    np.testing.assert_allclose(found, np.array(expected)[:, None].repeat(2, 1), rtol=1e-5)


def test_a_screen_that_ends_at_the_ceiling_has_no_proof(tmp_path):
    screen_quality = importlib.import_module("screen_quality")
    everything = FIRST | SECOND | {"of": "bo", "bo": "is"}
    tables = {"firsts": FIRST, "all": everything, "noise": {"bo": "?"}}
    write_library(tmp_path, tables, items=140)
    (tmp_path / "tasks").mkdir()
    (tmp_path / "task.jsonl").rename(tmp_path / "tasks" / "task.jsonl")
    adapters = {name: tmp_path / name for name in tables}
    world = SimpleNamespace(path=tmp_path, base=tmp_path / "base", adapters=adapters)
    truth = screen_quality.Truth({frozenset(("firsts", "all")): 1.0}, 1.0, 0.0)
    row = screen_quality.examined(world, truth, "task", 40, 2)
    assert (row["outcome"], row["proof"], row["adapters"]) == ("unlikely", {}, 3)
    assert row["asked_all"] == 3 and row["rankings"]
    assert "all items" in screen_quality.shown(row)
