"""Saved adapters are read back before they appear; portable files are one to every reader."""

import json
import math
import os
import re
from pathlib import Path

import making
import pytest
import safetensors.torch
import torch
from making import LLAMA, dense, random_adapter, tiny_llama
from merges import merge
from peft import PeftModel
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file

from loraprobe.adapters import (
    Adapter,
    adapter_of,
    common_targets,
    portable,
    read_adapter,
    saving,
    staged_directory,
)
from loraprobe.adapters import staging as staging_module
from loraprobe.errors import OutputError, UnsupportedAdapter
from loraprobe.lora.lowrank import LowRank

Q = "model.layers.0.self_attn.q_proj"
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


def test_targets_are_the_sources_own_where_they_select_the_same():
    def targeting(name: str, targets, **config) -> Adapter:
        config |= {"target_modules": targets}
        return adapter_of(name, dict(random_adapter().modules), config=config)

    a = targeting("a", ["q_proj", "v_proj", "mlp.up_proj"])
    b = targeting("b", ["q_proj", "gate_proj"])
    chosen = [p for p in LLAMA if p.endswith(("q_proj", "v_proj", "up_proj", "gate_proj"))]
    assert common_targets([a, b], chosen) == ("gate_proj", "mlp.up_proj", "q_proj", "v_proj")
    assert common_targets([a, b], list(LLAMA)) is None  # down_proj is selected by none
    layered = targeting("c", ["q_proj", "gate_proj"], layers_to_transform=[1])
    for other in (layered, targeting("d", "all-linear")):
        assert common_targets([a, other], chosen) is None


save_file, config_of = safetensors.torch.save_file, saving.config_of


CHANGES = {
    "an entry": lambda key, t, first: t.clone().fill_(0.25) if key == first else t,
    "without one": lambda key, t, first: None if key == first else t,
    "in half": lambda key, t, first: t.half(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_wrong_tensors(monkeypatch, tmp_path, change):
    def spoil(tensors, path, metadata=None):
        made = {key: CHANGES[change](key, t, min(tensors)) for key, t in tensors.items()}
        kept = {key: tensor for key, tensor in made.items() if tensor is not None}
        save_file(kept, path, metadata=metadata)

    monkeypatch.setattr(safetensors.torch, "save_file", spoil)
    with pytest.raises(OutputError, match="differs"):
        random_adapter("a").save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_scaling(monkeypatch, tmp_path):
    monkeypatch.setattr(saving, "config_of", lambda *a: config_of(*a) | {"lora_alpha": 7})
    with pytest.raises(OutputError, match="the scaling of"):
        random_adapter("a").save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


class TestSaving:
    """A saved adapter computes the same in peft, and its directory is complete or absent."""

    def test_patterns_cannot_confuse_modules(self, tmp_path):
        """One path is the end of another, and a dot must not match any character."""
        shapes = {"b.q": (4, 4), "a.b.q": (4, 4), "bxq": (4, 4), "a.b.q2": (4, 4)}
        ranks = dict(zip(shapes, (1, 2, 3, 3), strict=True))
        scalings = dict(zip(shapes, (0.1, 0.2, 0.3, 0.4), strict=True))
        adapter = making.random_adapter("x", shapes, ranks, 0, scalings)
        adapter.save(tmp_path / "x")
        config = json.loads((tmp_path / "x" / "adapter_config.json").read_text())
        for path, update in adapter.modules.items():
            ranks, alphas = config["rank_pattern"], config["alpha_pattern"]
            r = ranks.get(get_pattern_key(ranks, path), config["r"])
            alpha = alphas.get(get_pattern_key(alphas, path), config["lora_alpha"])
            assert r == update.rank and math.isclose(alpha / r, update.scaling)

    def test_widest_dtype_and_a_chosen_one(self, tmp_path):
        modules = {
            p: making.random_update(4, 4, 2, dtype=d)
            for p, d in (("a", torch.bfloat16), ("b", torch.float32))
        }
        adapter = adapter_of("x", modules)
        adapter.save(tmp_path / "x")
        assert {i.dtype for i in read_adapter(tmp_path / "x").layout.values()} == {torch.float32}
        adapter.save(tmp_path / "y", dtype=torch.float16)
        assert {i.dtype for i in read_adapter(tmp_path / "y").layout.values()} == {torch.float16}

    def test_slices_and_shared_tensors(self, tmp_path):
        """Factors that are views of one tensor are saved each on its own."""
        whole = torch.randn(8, 8)
        update = LowRank(whole[:2], whole[:, :2], 0.5)
        adapter_of("x", {"a": update, "b": LowRank(whole[:2], whole[:, 2:4])}).save(tmp_path / "x")
        assert torch.equal(read_adapter(tmp_path / "x").modules["a"].delta(), update.delta())
        one = LowRank(torch.eye(4), torch.eye(4))
        adapter_of("x", {"a": one, "b": one}).save(tmp_path / "y")
        assert len(read_adapter(tmp_path / "y").modules) == 2

    def test_card_and_nothing_else(self, tmp_path):
        making.random_adapter().save(tmp_path / "x", card="# Merged ü")
        names = {"adapter_config.json", "adapter_model.safetensors", "README.md"}
        assert {f.name for f in (tmp_path / "x").iterdir()} == names
        assert (tmp_path / "x" / "README.md").read_text(encoding="utf-8") == "# Merged ü"

    @pytest.mark.parametrize(
        "place, overwrite",
        [("x", False), ("x", True), ("x/README.md", True), ("x/README.md/y", True)],
    )
    def test_only_an_adapter_is_overwritten_and_only_when_asked(self, tmp_path, place, overwrite):
        making.random_adapter(seed=1).save(tmp_path / "x", card="old")
        if place == "x" and overwrite:
            (tmp_path / "x" / "notes").mkdir()
        before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
        with pytest.raises(OutputError):
            making.random_adapter(seed=2).save(tmp_path / place, overwrite=overwrite)
        assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before

    def test_what_cannot_be_saved(self, tmp_path):
        (one, update), *_ = modules = list(making.random_adapter().modules.items())
        mixed = adapter_of("mixed", dict(modules), magnitudes={one: torch.ones(update.B.shape[0])})
        for adapter in (mixed, adapter_of("empty", {})):
            with pytest.raises(UnsupportedAdapter):
                adapter.save(tmp_path / "x")
        assert not list(tmp_path.iterdir())

    def test_an_adapter_may_replace_its_own_source(self, tmp_path):
        making.random_adapter(seed=3).save(tmp_path / "x")
        adapter = read_adapter(tmp_path / "x")
        adapter.save(tmp_path / "x", overwrite=True, card="again")
        expected = making.random_adapter(seed=3).modules[Q].delta()
        assert torch.equal(read_adapter(tmp_path / "x").modules[Q].delta(), expected)

    def test_failure_leaves_no_trace(self, tmp_path, monkeypatch):
        making.random_adapter(seed=1).save(tmp_path / "old")
        before = {f.name: f.read_bytes() for f in (tmp_path / "old").iterdir()}
        real = safetensors.torch.save_file

        def full(tensors, path, **options):
            real(tensors, path, **options)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(safetensors.torch, "save_file", full)
        for target in ("old", "new"):
            with pytest.raises(OutputError, match="No space left"):
                making.random_adapter(seed=2).save(tmp_path / target, overwrite=True)
        assert [p.name for p in tmp_path.iterdir()] == ["old"]
        assert {f.name: f.read_bytes() for f in (tmp_path / "old").iterdir()} == before

    def test_failure_while_swapping_brings_the_old_one_back(self, tmp_path, monkeypatch):
        making.random_adapter(seed=1).save(tmp_path / "x", card="old")
        real, calls = os.rename, []

        def rename(source, target):
            calls.append(source)
            if len(calls) == 2:
                raise OSError(5, "Input/output error")
            real(source, target)

        monkeypatch.setattr(os, "rename", rename)
        monkeypatch.setattr(staging_module, "_exchanged", lambda *_: False)  # in two steps
        with pytest.raises(OutputError, match="Input/output"):
            making.random_adapter(seed=2).save(tmp_path / "x", overwrite=True)
        assert (tmp_path / "x" / "README.md").read_text() == "old"
        assert [p.name for p in tmp_path.iterdir()] == ["x"]

    def test_interrupted(self, tmp_path):
        with pytest.raises(KeyboardInterrupt), staged_directory(tmp_path / "x") as staging:
            (staging / "f").write_text("half")
            raise KeyboardInterrupt
        assert list(tmp_path.iterdir()) == []
