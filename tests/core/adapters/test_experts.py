"""LoRA on stacked parameters (`target_parameters`): read, merged and saved as peft computes it."""

import json
import warnings

import pytest
import torch
from making import write_adapter
from merges import merge
from mixtures import BOTH, CASES, IN, MIDDLE, Layers, deltas_of_peft, saved, wrapped
from peft import PeftModel
from safetensors.torch import load_file

from loraprobe import untrusted
from loraprobe.adapters import read_adapter
from loraprobe.errors import AdapterError, CompatibilityError, UnsupportedAdapter


def deltas(adapter) -> dict[str, torch.Tensor]:
    """The same of an adapter of `Layers`; down is wrapped last, so it is the outermost."""
    found: dict[str, list] = {}
    targets = [name.rpartition(".")[2] for name in adapter.config["target_parameters"]]
    for path, update in adapter.modules.items():
        stack, bracket, _ = path.partition("[")
        name = stack
        if bracket:
            owner = stack.replace(".base_layer", "")
            own = [n for n in (["weight"] if "gate" in owner else ["down", "up"]) if n in targets]
            name = f"{owner}.{own[stack.count('.base_layer')]}"
        found.setdefault(name, []).append(update.delta())
    return {name: torch.stack(parts) for name, parts in found.items()}


def same(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name, delta in wanted.items():
        torch.testing.assert_close(found[name], delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_what_peft_loads_of_a_merge_is_the_weighted_sum(tmp_path, case, transposed):
    """Of adapters of unequal ranks and scalings, from the saved file."""
    models = [wrapped(CASES[case], transposed), wrapped(CASES[case], transposed, 2, r=3)]
    adapters = [saved(tmp_path / name, m) for name, m in zip("ab", models, strict=True)]
    assert not any(adapter.issues or adapter.extras for adapter in adapters)
    merged = merge(adapters, "task_arithmetic", weights=(0.7, -0.4))
    merged.save(tmp_path / "out")
    one, other = map(deltas_of_peft, models)
    wanted = {name: 0.7 * delta - 0.4 * other[name] for name, delta in one.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = PeftModel.from_pretrained(Layers(transposed), tmp_path / "out")
    same(deltas_of_peft(loaded), wanted)
    same(deltas(read_adapter(tmp_path / "out")), wanted)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert sorted(config["target_parameters"]) == sorted(CASES[case]["target_parameters"])
    keys = set(load_file(tmp_path / "a" / "adapter_model.safetensors"))
    assert set(load_file(tmp_path / "out" / "adapter_model.safetensors")) == keys


@pytest.mark.parametrize(
    "cases",
    [
        (CASES["two parameters of a module"], {"target_modules": ["proj"]}),  # linear layers beside
        # Lists that select different layers become full names.
        [{"target_parameters": [f"layers.{i}.experts.up"]} for i in (0, 1)],
    ],
)
def test_a_merge_of_adapters_of_different_parameters_keeps_both(tmp_path, cases):
    models = [wrapped(cases[0]), wrapped(cases[1], r=3)]
    adapters = [saved(tmp_path / name, m) for name, m in zip("ab", models, strict=True)]
    merge(adapters, "sum").save(tmp_path / "out")
    loaded = PeftModel.from_pretrained(Layers(), tmp_path / "out")
    same(deltas_of_peft(loaded), deltas_of_peft(models[0]) | deltas_of_peft(models[1]))


def test_adapters_that_target_other_parameters_of_a_module_are_refused(tmp_path):
    cases = [CASES["one parameter"], CASES["two parameters of a module"]]
    one, other = (saved(tmp_path / str(i), wrapped(c)) for i, c in enumerate(cases))
    with pytest.raises(CompatibilityError, match=r"0 targets down of layers\.0\.experts"):
        merge([one, other], "sum")


def stack(rows: int, path: str = "a.experts") -> dict:
    key = f"base_model.model.{path}.lora_"
    return {f"{key}A.weight": torch.ones(rows, IN), f"{key}B.weight": torch.ones(MIDDLE, rows)}


UNCLEAR = {
    "rows that the rank does not divide": (stack(6), {}),
    "a parameter that the config does not name": (stack(8) | stack(8, "a.experts.base_layer"), {}),
    "a parameter without the outer one": (stack(8, "a.experts.base_layer"), {}),
    "two scalings, of which either may be meant": (stack(8) | stack(8, "a.experts.base_layer"),
        {"target_parameters": BOTH, "alpha_pattern": {"up": 3}}),
}  # fmt: skip


@pytest.mark.parametrize("case", UNCLEAR)
def test_factors_whose_rank_is_unclear_are_listed_and_not_used(tmp_path, case):
    tensors, config = UNCLEAR[case]
    options = {"target_modules": [], "target_parameters": ["experts.up"]} | config
    adapter = read_adapter(write_adapter(tmp_path / "a", tensors, **options))
    assert not adapter.modules and {extra.kind for extra in adapter.extras} == {"target_parameter"}
    assert {extra.key for extra in adapter.extras} == set(tensors)


def test_experts_count_for_the_limit_of_modules(tmp_path, monkeypatch):
    options = {"target_modules": [], "target_parameters": ["experts.up"], "r": 1}
    place = write_adapter(tmp_path / "a", stack(40), **options)
    monkeypatch.setattr(untrusted, "MODULES", 39)
    with pytest.raises(AdapterError, match="adapts 40 modules"):
        read_adapter(place)
    monkeypatch.undo()
    assert list(read_adapter(place).modules) == [f"a.experts[{number}]" for number in range(40)]


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ((3, 2, 6), (3, 5, 2), "SGLang, NeMo and Tinker)"),
        ((3, 4, 6), (3, 10, 2), "SGLang, NeMo and Tinker)"),  # gate and up, each of rank 2
        ((1, 2, 6), (3, 5, 2), "shared by all experts"),
        ((3, 2, 6), (5, 2, 3), "vLLM"),
    ],
)
def test_layouts_of_servers_and_trainers_are_refused_by_name(tmp_path, a, b, words):
    key = "base_model.model.layers.0.mlp.experts.gate_up_proj.lora_"
    tensors = {f"{key}A.weight": torch.ones(a), f"{key}B.weight": torch.ones(b)}
    plain = {f"base_model.model.q.lora_{n}.weight": torch.ones(4, 4) for n in "AB"}
    adapter = read_adapter(write_adapter(tmp_path / "a", tensors | plain, target_modules=["q"]))
    (issue,) = (issue for issue in adapter.issues if issue.code == "expert-layout")
    assert issue.severity == "error" and words in issue.message and issue.cure
    assert {extra.kind for extra in adapter.extras} == {"target_parameter"}
    with pytest.raises(UnsupportedAdapter, match="three dimensions"):
        merge([adapter, adapter.renamed("b")], "sum")
