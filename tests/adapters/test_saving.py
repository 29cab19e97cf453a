"""Saved adapters are read back before they appear; portable files are one to every reader."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from making import LLAMA, dense, random_adapter, tiny_llama
from peft import PeftModel
from safetensors.torch import load_file

from loraprobe.adapters import Adapter, adapter_of, common_targets, portable, read_adapter, saving
from loraprobe.errors import OutputError
from loraprobe.merging import merge

RANKS = {path: 2 + i % 3 for i, path in enumerate(LLAMA)}
SCALINGS = {path: (0.5, 2.0, 0.3)[i % 3] for i, path in enumerate(LLAMA)}
LAYOUTS = {
    "ranks": {"rank": RANKS},
    "scalings": {"scaling": SCALINGS},
    "both": {"rank": RANKS, "scaling": SCALINGS},
    "rank-stabilised": {"rank": 8, "scaling": 2 / 8**0.5},
    "plain": {},
}


def vllm(directory: Path) -> dict[str, torch.Tensor]:
    """Deltas by vLLM's PEFTHelper: one scaling lora_alpha / r (/ sqrt(r) with rsLoRA), no pattern.

    Source: vllm/lora/peft_helper.py; it refuses DoRA, biases and modules_to_save.
    """
    config = json.loads((directory / "adapter_config.json").read_text())
    r, alpha = config["r"], config["lora_alpha"]
    assert isinstance(alpha, int)
    scaling = alpha / r**0.5 if config["use_rslora"] else alpha / r
    tensors = load_file(directory / "adapter_model.safetensors")
    return _deltas(tensors, lambda A: scaling)


def llama_cpp(directory: Path) -> dict[str, torch.Tensor]:
    """Deltas by llama.cpp: one alpha, divided by the rank of each tensor; rsLoRA is not read.

    Source: convert_lora_to_gguf.py writes adapter.lora.alpha; llama-adapter.h get_scale.
    """
    config = json.loads((directory / "adapter_config.json").read_text())
    tensors = load_file(directory / "adapter_model.safetensors")
    return _deltas(tensors, lambda A: config["lora_alpha"] / len(A))


def _deltas(tensors, scaling) -> dict[str, torch.Tensor]:
    found = {}
    for key, A in tensors.items():
        if match := re.fullmatch(r"base_model\.model\.(.+)\.lora_A\.weight", key):
            B = tensors[key.replace("lora_A", "lora_B")]
            found[match[1]] = scaling(A) * B.double() @ A.double()
    return found


def worst(found: dict[str, torch.Tensor], wanted: Adapter) -> float:
    """The largest relative error of a module."""
    assert found.keys() == wanted.layout.keys()
    pairs = ((found[path], dense(wanted.modules[path])) for path in found)
    return max(float((one - other).norm() / other.norm()) for one, other in pairs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_servers_read_a_portable_file_as_it_is_meant(tmp_path, layout, dtype):
    adapter = random_adapter(dtype=dtype, **LAYOUTS[layout])
    made = portable(adapter)
    made.save(tmp_path / "made")
    rounding = 2 * torch.finfo(dtype).eps if {*SCALINGS.values()} & {0.3} else 0.0
    assert worst(vllm(tmp_path / "made"), adapter) <= rounding
    assert worst(llama_cpp(tmp_path / "made"), adapter) <= rounding
    config = json.loads((tmp_path / "made" / "adapter_config.json").read_text())
    assert not config["rank_pattern"] and not config["alpha_pattern"]


def test_zeros_change_no_bit_and_a_plain_adapter_stays_as_it_is():
    mixed = random_adapter(rank=RANKS, dtype=torch.bfloat16)
    made = portable(mixed)
    assert made.rank_range == (4, 4)
    for path, update in mixed.modules.items():
        assert torch.equal(made.modules[path].B[:, : update.rank], update.B)
        assert not made.modules[path].A[update.rank :].any()
        assert torch.equal(dense(made.modules[path]), dense(update))
    plain = random_adapter(scaling=2.0)
    for path, update in portable(plain).modules.items():
        assert torch.equal(update.A, plain.modules[path].A) and update.scaling == 2.0
        # A large merge would need its own size once more.
        assert update.A.data_ptr() == plain.modules[path].A.data_ptr()
        assert update.B.data_ptr() == plain.modules[path].B.data_ptr()


def test_a_merge_of_mixed_ranks_is_read_alike_by_peft_and_servers(tmp_path):
    sources = [
        random_adapter("a", rank=RANKS, scaling=SCALINGS, seed=1),
        random_adapter("b", {p: s for p, s in LLAMA.items() if "mlp" not in p}, rank=3, seed=2),
    ]
    merged = merge(sources)
    merged.save(tmp_path / "portable")
    merged.adapter.save(tmp_path / "compact")  # each module at its own rank
    assert worst(vllm(tmp_path / "portable"), merged.adapter) == 0
    assert worst(llama_cpp(tmp_path / "portable"), merged.adapter) == 0
    assert worst(llama_cpp(tmp_path / "compact"), merged.adapter) > 0.1
    ids = torch.arange(1, 21)[None]
    with torch.no_grad():
        one, other = (
            PeftModel.from_pretrained(tiny_llama(), str(tmp_path / name)).eval()(ids).logits
            for name in ("portable", "compact")
        )
        base = tiny_llama().eval()(ids).logits
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one, base, atol=1e-2)


def test_targets_are_the_sources_own_where_they_select_the_same(tmp_path):
    a, b = (
        adapter_of(name, dict(held.modules), config=config)
        for name, held, config in (
            ("a", random_adapter(), {"target_modules": ["q_proj", "v_proj", "mlp.up_proj"]}),
            ("b", random_adapter(seed=1), {"target_modules": ["q_proj", "gate_proj"]}),
        )
    )
    chosen = [p for p in LLAMA if p.endswith(("q_proj", "v_proj", "up_proj", "gate_proj"))]
    assert common_targets([a, b], chosen) == ("gate_proj", "mlp.up_proj", "q_proj", "v_proj")
    assert common_targets([a, b], list(LLAMA)) is None  # down_proj is selected by none
    layered = adapter_of("c", dict(b.modules), config={**b.config, "layers_to_transform": [1]})
    assert common_targets([a, layered], chosen) is None
    every = adapter_of("d", dict(b.modules), config={"target_modules": "all-linear"})
    assert common_targets([a, every], chosen) is None


def test_a_merge_writes_the_short_target_list(tmp_path):
    names = sorted({path.rpartition(".")[2] for path in LLAMA})
    sources = [
        adapter_of(n, dict(random_adapter(seed=i).modules), config={"target_modules": names})
        for i, n in enumerate("ab")
    ]
    merge(sources).save(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == names
    assert read_adapter(tmp_path / "out").layout.keys() == LLAMA.keys()


save_file, config_of = safetensors.torch.save_file, saving.config_of


def one_entry(tensors):
    key = min(tensors)
    return tensors | {key: tensors[key].clone().fill_(0.25)}


def without_one(tensors):
    return {key: tensor for key, tensor in tensors.items() if key != min(tensors)}


def in_half(tensors):
    return {key: tensor.half() for key, tensor in tensors.items()}


@pytest.mark.parametrize("change", [one_entry, without_one, in_half])
def test_wrong_tensors(monkeypatch, tmp_path, change):
    def spoil(tensors, path, metadata=None):
        save_file(change(dict(tensors)), path, metadata=metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", spoil)
    with pytest.raises(OutputError, match="differs"):
        random_adapter("a").save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_scaling(monkeypatch, tmp_path):
    monkeypatch.setattr(saving, "config_of", lambda *a: config_of(*a) | {"lora_alpha": 7})
    with pytest.raises(OutputError, match="the scaling of"):
        random_adapter("a").save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
