"""Bases in other forms than one float32 model on one device: quantised, spread, in shards."""

import shutil
from importlib.util import find_spec

import pytest
import torch
from bases import subwords
from making import base_tensors, edit, hidden, random_adapter, random_update, tiny_model
from merges import merge
from safetensors.torch import load_file, save_file

import loraprobe
from loraprobe.adapters import adapter_of
from loraprobe.base import load_base, loading, open_base
from loraprobe.composition import composed
from loraprobe.composition.dora import dense_weight
from loraprobe.errors import BaseError, UsageError
from loraprobe.options import Options
from loraprobe.pipeline import commands
from loraprobe.routing.constant import single
from loraprobe.session import Session

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="needs bitsandbytes"
)
needs_accelerate = pytest.mark.skipif(find_spec("accelerate") is None, reason="needs accelerate")
SHAPES = {"model.layers.0.self_attn.q_proj": (64, 64), "model.layers.1.mlp.down_proj": (64, 128)}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A Llama of width 64, which quantises by blocks of 64, in shards, with a tokenizer."""
    path = tmp_path_factory.mktemp("base")
    model = tiny_model("Llama", vocab_size=512, hidden_size=64, intermediate_size=128)
    model.save_pretrained(path, max_shard_size="40KB")
    subwords().save_pretrained(path)
    assert len(list(path.glob("*.safetensors"))) > 3
    return path


def evaluated(directory, place, **options):
    """merge_and_eval of two adapters of the base with a task of one question, asked thrice."""
    names = enumerate("ab")
    pair = [random_adapter(n, SHAPES, seed=i, base_model=str(directory)) for i, n in names]
    (place / "t.jsonl").write_text('{"prompt": "Once upon a", "answer": " time"}\n' * 3)
    options |= {"base": directory, "tasks": place / "t.jsonl", "state": place / "state"}
    return loraprobe.merge_and_eval(pair, **options)


@needs_bitsandbytes
@needs_accelerate
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_compositions_run_on_a_quantised_base(directory, bits):
    """Layer by layer against the layer's own output, which bitsandbytes computes as it will."""
    base = open_base(directory)
    model, plain = load_base(base, quantize=bits).model, load_base(base).model
    layer = model.get_submodule(next(iter(SHAPES)))
    assert type(layer).__name__ == {"4bit": "Linear4bit", "8bit": "Linear8bitLt"}[bits]
    assert 1e-4 < (hidden(model) - hidden(plain)).abs().max() < 0.1
    adapter = random_adapter("a", SHAPES, scaling=0.05)
    magnitudes = {}
    for path, update in adapter.modules.items():  # also after a forward pass, as here
        weight = dense_weight(model.get_submodule(path), path, "This test").float()
        own = plain.get_submodule(path).weight
        assert (weight - own).norm() < {"4bit": 0.15, "8bit": 0.02}[bits] * own.norm()
        magnitudes[path] = 1.2 * (weight + update.delta()).norm(dim=1)
    dora = adapter_of("d", dict(adapter.modules), magnitudes=magnitudes)
    for expert, factor in ((adapter, 1.0), (dora, 1.2)):
        for path, update in expert.modules.items():
            layer, x = model.get_submodule(path), torch.randn(5, SHAPES[path][1])
            with torch.no_grad():
                before = layer(x)
                with composed(model, single(expert)):
                    got = layer(x)
            expected = factor * (before + x @ update.delta().mT)
            torch.testing.assert_close(got, expected, rtol=2e-3, atol=2e-3)


@needs_bitsandbytes
@needs_accelerate
def test_the_audit_says_that_scores_are_of_the_quantised_base(directory, tmp_path):
    options = {"quantize": "4bit", "methods": ("uniform",), "routers": (), "max_new_tokens": 2}
    found = evaluated(directory, tmp_path, **options)
    assert any("quantised to 4 bits" in note for note in found.notes)
    assert found.evaluation


def test_a_package_that_is_missing_is_named_with_the_cure(directory, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    base = open_base(directory)
    told = r"--quantize 4bit needs bitsandbytes and accelerate, which are not .*: pip install bits"
    with pytest.raises(BaseError, match=told):
        load_base(base, quantize="4bit")
    with pytest.raises(BaseError, match=r"--device-map auto needs accelerate, which is not inst"):
        load_base(base, device_map="auto")


def test_a_base_that_is_quantised_already_is_not_quantised_again(directory, tmp_path):
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    stored = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    edit(tmp_path / "config.json", quantization_config=stored)
    with pytest.raises(BaseError, match=r"stored quantised already; leave --quantize out"):
        load_base(open_base(tmp_path), quantize="8bit")


@needs_accelerate
def test_a_base_that_accelerate_places_runs_compositions(directory):
    base = open_base(directory)
    spread, plain = load_base(base, device_map="auto").model, load_base(base).model
    adapter = random_adapter("a", SHAPES, scaling=0.05)
    with composed(spread, single(adapter)), composed(plain, single(adapter)):
        torch.testing.assert_close(hidden(spread), hidden(plain))


@needs_accelerate
def test_device_and_device_map_exclude_each_other(directory, tmp_path):
    with pytest.raises(UsageError, match="places the base by itself"):
        evaluated(directory, tmp_path, device_map="auto", device="cpu")


def test_weights_stream_from_shards_one_at_a_time(directory, monkeypatch):
    """A DoRA merge against a base in shards reads each weight once, and no model."""
    base = open_base(directory)
    state = load_base(base).model.state_dict()
    for path in SHAPES:
        assert torch.equal(base.weight(path), state[f"{path}.weight"])
    assert torch.equal(base.parameter("model.norm.weight"), state["model.norm.weight"])
    adapters = [
        adapter_of(
            n,
            dict(random_adapter(n, SHAPES, seed=i).modules),
            magnitudes={p: torch.full((s[0],), 1.0 + i) for p, s in SHAPES.items()},
            base_model=str(directory),
            whole={"model.norm.weight": torch.full((64,), 3.0)},
        )
        for i, n in enumerate("ab")
    ]
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("loaded"))
    asked = []

    def weight(path):
        asked.append(path)
        return base.weight(path)

    merged = merge(adapters, "sum", base=base_tensors(weight, base.parameter))
    assert asked == list(SHAPES)
    norm = merged.adapter.whole["model.norm.weight"]
    assert torch.equal(norm, 2 * torch.full((64,), 3.0) - state["model.norm.weight"])
    made = commands.merge(adapters, Session(Options(methods=("sum",))), base=base)
    found, again = made.audit, made.made
    assert found.base is not None and again.adapter.magnitudes


def test_a_quantised_base_on_disk_cannot_give_what_dora_needs(tmp_path, directory):
    place = shutil.copytree(directory, tmp_path / "base")
    for file in place.glob("*.safetensors"):
        tensors = load_file(file)
        save_file({k: v.to(torch.int8) if "q_proj" in k else v for k, v in tensors.items()}, file)
    path = next(iter(SHAPES))
    adapter = adapter_of("a", {path: random_update(64, 64)}, magnitudes={path: torch.ones(64)})
    with pytest.raises(BaseError, match=rf"stores {path} quantised .*give the unquantised base"):
        merge([adapter], base=open_base(place))


def test_parameters_have_the_names_of_the_model_in_memory(tmp_path, gpt2):
    """gpt2 as it is published lacks the prefix of its body; a head may share the embedding."""
    gpt2.save_pretrained(tmp_path)
    body = {k.removeprefix("transformer."): v for k, v in gpt2.state_dict().items()}
    del body["lm_head.weight"]
    save_file({k: v.contiguous() for k, v in body.items()}, tmp_path / "model.safetensors")
    base = open_base(tmp_path)
    for name, expected in gpt2.state_dict().items():
        assert torch.equal(base.parameter(name), expected), name
    weight = base.weight("transformer.h.0.attn.c_attn")
    assert torch.equal(weight, gpt2.transformer.h[0].attn.c_attn.weight.mT)
    with pytest.raises(BaseError, match=r"no parameter 'transformer.h.0.ln_1.wait'; did you mean"):
        base.parameter("transformer.h.0.ln_1.wait")


def test_a_convolution_of_a_base_is_flattened(tmp_path):
    weight = torch.randn(6, 4, 3, 2)
    save_file({"tower.patch.weight": weight}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "none"}')
    base = open_base(tmp_path)
    assert base.shapes["tower.patch"] == (6, 24)
    assert torch.equal(base.weight("tower.patch"), weight.flatten(1))
    assert torch.equal(base.parameter("tower.patch.weight"), weight)
