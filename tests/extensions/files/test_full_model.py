"""A merge added to its base, against dense weights, peft, and loraprobe's own composition.

Every kind of adapter and layer is in tests/core/compatibility/test_kinds.py.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import making
import pytest
import torch
from merges import merge, ties_dense, trimmed
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loraprobe.adapters import adapter_of
from loraprobe.base import open_base
from loraprobe.errors import BaseError, CompatibilityError, OutputError, UsageError
from loraprobe.extensions.files.full_model import save_full_model

pytest.importorskip("transformers", minversion="5.24", reason="full models are refused below")

UP = "model.layers.0.mlp.up_proj"
UPS = {f"model.layers.{i}.mlp.up_proj": (24, 16) for i in range(2)}
WEIGHTS = (0.7, -0.4)


def base_at(place: Path, model=None, dtype=torch.float32, **options):
    """A base's directory, of a tiny Llama unless a model is given."""
    (model or making.tiny_llama()).to(dtype).save_pretrained(place, **options)
    return open_base(place)


def pair(shapes=making.LLAMA, **options):
    return [making.random_adapter(n, shapes, seed=i, **options) for i, n in enumerate("ab", 1)]


def tensors_of(place: Path) -> dict[str, torch.Tensor]:
    files = sorted(place.glob("*.safetensors"))
    return {key: tensor for file in files for key, tensor in load_file(file).items()}


def loaded(place: Path, **options):
    model, report = AutoModelForCausalLM.from_pretrained(place, output_loading_info=True, **options)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys"))
    return model.eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", ["one file", "shards", "pickles"])
def test_each_weight_is_the_rounded_sum_and_stands_where_it_stood(tmp_path, dtype, form):
    options = {} if form == "one file" else {"max_shard_size": "4KB"}
    base = base_at(tmp_path / "base", dtype=dtype, **options)
    before, files = tensors_of(base.path), [file.name for file in base.weight_files]
    if form == "pickles":
        pickled(base.path)
        base = open_base(base.path)
        assert all(file.suffix == ".bin" for file in base.weight_files)
    adapters = pair(UPS)
    merged = merge(adapters, "task_arithmetic", weights=WEIGHTS, base=base)
    lost = save_full_model(merged, tmp_path / "full")
    after = tensors_of(tmp_path / "full")
    assert sorted(p.name for p in (tmp_path / "full").glob("*.safetensors")) == sorted(files)
    assert after.keys() == before.keys() and (len(files) > 1) == (form != "one file")
    change2 = lost2 = 0.0
    for key, tensor in before.items():
        path = key.removesuffix(".weight")
        if path not in UPS:
            assert torch.equal(after[key], tensor), key
            continue
        delta = sum(
            w * making.dense(a.modules[path]) for w, a in zip(WEIGHTS, adapters, strict=True)
        )
        wanted = (tensor.double() + delta).to(dtype)
        spacing = torch.finfo(dtype).eps * wanted.abs().float()
        assert after[key].dtype is dtype
        assert ((after[key].float() - wanted.float()).abs() <= spacing + 1e-6).all()
        change2 += float(delta.square().sum())
        lost2 += float((after[key].double() - tensor.double() - delta).square().sum())
    if dtype is not torch.float32:
        assert lost == pytest.approx((lost2 / change2) ** 0.5, rel=1e-3)
    if form != "one file":
        index = json.loads((tmp_path / "full" / "model.safetensors.index.json").read_text())
        assert index["weight_map"].keys() == after.keys()
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in after.values())
    loaded(tmp_path / "full", dtype=dtype)


def pickled(place: Path) -> None:
    """Makes pickles of a base's safetensors files."""
    index = json.loads((place / "model.safetensors.index.json").read_text())
    for file in place.glob("*.safetensors"):
        name = file.name.replace("model-", "pytorch_model-").replace("safetensors", "bin")
        torch.save(load_file(file), place / name)
        file.unlink()
        index["weight_map"] = {
            key: name if held == file.name else held for key, held in index["weight_map"].items()
        }
    (place / "model.safetensors.index.json").unlink()
    (place / "pytorch_model.bin.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["vocab.txt", "README.md", "model-00002.bin", "tokenizer.json"])
def test_files_of_the_base_may_have_any_names(tmp_path, name):
    """Of the files that transformers loads from the index none is replaced by another file."""
    base = base_at(tmp_path / "base", max_shard_size="4KB")
    before, index = tensors_of(base.path), base.path / "model.safetensors.index.json"
    files = [file.name for file in base.weight_files]
    renamed = dict(zip(files[:2], (name, "model-00002.safetensors"), strict=True))
    for old, new in renamed.items():
        if new.endswith(".bin"):
            torch.save(load_file(base.path / old), base.path / new)
        else:
            (base.path / old).rename(base.path / new)
    document = json.loads(index.read_text())
    held = document["weight_map"].items()
    document["weight_map"] = {key: renamed.get(file, file) for key, file in held}
    index.write_text(json.dumps(document))
    merged = merge(pair(UPS), "sum", base=open_base(base.path))
    carded = replace(
        merged, card="---\nloraprobe: {}\n---\n", card_of=lambda *_, **more: "the card"
    )
    save_full_model(carded, tmp_path / "full")
    after = tensors_of(tmp_path / "full")
    assert after.keys() == before.keys()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {f"{path}.weight" for path in UPS}
    loaded(tmp_path / "full")


def test_a_tensor_that_no_file_of_the_base_holds(tmp_path):
    base = base_at(tmp_path / "base", max_shard_size="4KB")
    index = base.path / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"]["lost.weight"] = base.weight_files[0].name
    index.write_text(json.dumps(document))
    with pytest.raises(BaseError, match=r"lost\.weight"):
        save_full_model(merge(pair(UPS), base=open_base(base.path)), tmp_path / "full")
    assert not (tmp_path / "full").exists()


@pytest.mark.parametrize("method", ["ties:density=0.5", "dare_linear", "della", "tsv", "slerp"])
def test_no_rank_cuts_a_full_model(tmp_path, method):
    """The adapter of the same merge holds the best factors of the same dense change."""
    base, adapters = base_at(tmp_path / "base"), pair(UPS)
    merged = merge(adapters, method, weights=(0.7, 0.6), base=base, seed=3)
    save_full_model(merged, tmp_path / "full")
    before, after = tensors_of(base.path), tensors_of(tmp_path / "full")
    for path in UPS:
        change = (after[f"{path}.weight"] - before[f"{path}.weight"]).double()
        if method.startswith("ties"):
            deltas = [trimmed(making.dense(a.modules[path]), 0.5) for a in adapters]
            wanted = ties_dense(deltas, [0.7, 0.6], "peft")
            torch.testing.assert_close(change, wanted, rtol=1e-4, atol=1e-6)
        U, S, Vh = torch.linalg.svd(change)
        k = merged.adapter.modules[path].rank
        best = (U[:, :k] * S[:k]) @ Vh[:k]
        cut = making.dense(merged.adapter.modules[path])
        torch.testing.assert_close(cut, best, rtol=1e-3, atol=2e-5)
    assert (merged.compression_error > 0.05) == (method not in ("tsv", "slerp"))


def test_a_rank_that_was_asked_for_cuts_it(tmp_path):
    base = base_at(tmp_path / "base")
    merged = merge(pair(UPS), "ties", rank=3, base=base)
    save_full_model(merged, tmp_path / "full")
    change = tensors_of(tmp_path / "full")[f"{UP}.weight"] - base.weight(UP)
    wanted = making.dense(merged.adapter.modules[UP])
    torch.testing.assert_close(change.double(), wanted, rtol=1e-4, atol=1e-5)


def test_names_that_change_while_loading(tmp_path):
    """A checkpoint with vision, whose files have other names and whose embedding is tied."""
    from transformers import AutoModelForImageTextToText

    base = base_at(tmp_path / "base", making.tiny_gemma3_with_vision())
    head = "model.language_model.embed_tokens"
    shapes = {"model.language_model.layers.1.mlp.up_proj": (24, 16), head: (16, 40)}
    adapters = pair(shapes, kinds={head: "embedding"})
    merged = merge(adapters, "sum", base=base)
    save_full_model(merged, tmp_path / "full")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "full")
    for path in shapes:
        delta = making.dense(merged.adapter.modules[path])
        wanted = base.weight(path) + delta
        found = model.get_submodule(path).weight
        found = found.mT if path == head else found
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.lm_head.weight, base.weight("lm_head"))


def test_an_embedding_of_a_base_that_stores_its_tied_head_too(tmp_path):
    """As pickles of tied models do."""
    base = base_at(tmp_path / "base")
    state = load_file(base.path / "model.safetensors")
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    (base.path / "model.safetensors").unlink()
    torch.save(state, base.path / "pytorch_model.bin")
    path = "model.embed_tokens"
    adapters = pair({path: (16, 40)}, kinds={path: "embedding"})
    merged = merge(adapters, base=open_base(base.path))
    save_full_model(merged, tmp_path / "full")
    model = loaded(tmp_path / "full")
    assert torch.equal(model.lm_head.weight, state["lm_head.weight"])
    change = (model.model.embed_tokens.weight - state["lm_head.weight"]).mT.double()
    wanted = making.dense(merged.adapter.modules[path])
    torch.testing.assert_close(change, wanted, rtol=1e-4, atol=1e-5)


def test_a_quantised_base_is_dequantised_first(tmp_path, monkeypatch):
    """FP8 with a scale for each block, as DeepSeek and Qwen publish it."""
    base = base_at(tmp_path / "base", making.tiny_llama(tied=False), dtype=torch.bfloat16)
    state = load_file(base.path / "model.safetensors")
    plain = dict(state)
    for key in [key for key in state if "_proj" in key]:
        scale = state[key].float().abs().max() / 448
        state[key] = (state[key].float() / scale).to(torch.float8_e4m3fn)
        state[f"{key}_scale_inv"] = scale.reshape(1, 1)
        plain[key] = (state[key].float() * scale).to(torch.bfloat16)
    save_file(state, base.path / "model.safetensors", metadata={"format": "pt"})
    quantised = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    making.edit(base.path / "config.json", quantization_config=quantised)
    adapters = pair(UPS)
    merged = merge(adapters, base=open_base(base.path))
    save_full_model(merged, tmp_path / "full")
    after = tensors_of(tmp_path / "full")
    assert after.keys() == plain.keys()
    assert "quantization_config" not in json.loads((tmp_path / "full/config.json").read_text())
    for key, tensor in plain.items():
        wanted, path = tensor, key.removesuffix(".weight")
        if path in UPS:
            wanted = (tensor.float() + making.dense(merged.adapter.modules[path])).bfloat16()
        torch.testing.assert_close(after[key], wanted, rtol=1e-2, atol=1e-6)
    loaded(tmp_path / "full")
    free = base.path.stat().st_size + sum(file.stat().st_size for file in base.weight_files)
    usage = SimpleNamespace(total=2 * free, free=free)  # enough for the quantised size alone
    with monkeypatch.context() as patched, pytest.raises(OutputError, match="its disk has"):
        patched.setattr("shutil.disk_usage", lambda _: usage)
        save_full_model(merged, tmp_path / "other")
    making.edit(base.path / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(BaseError, match="unquantised"):
        save_full_model(merge(adapters, base=open_base(base.path)), tmp_path / "other")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["base", "full"]


def holding(**more):
    """A pair on UP that also holds `more`, as `adapter_of` takes it."""
    return [adapter_of(a.name, dict(a.modules), **more) for a in pair({UP: (24, 16)})]


@pytest.mark.parametrize(
    ("adapters", "error", "words"),
    [
        (holding(offsets={UP: torch.ones(24)}), CompatibilityError, f"has no parameter {UP}.bias"),
        (holding(whole={"lm_head.weight": torch.ones(41, 16)}), CompatibilityError, "resize"),
        (holding(whole={"score.weight": torch.ones(2, 16)}), CompatibilityError, "score.weight"),
        (pair({"nonesuch": (3, 4)}), CompatibilityError, "no parameter nonesuch.weight"),
        (pair({UP: (25, 16)}), CompatibilityError, "trained on"),
        (pair(UPS, scaling=1e6), OutputError, "does not fit into float16"),
    ],
)
def test_what_the_base_cannot_hold_is_refused_and_nothing_is_written(
    tmp_path, adapters, error, words
):
    base = base_at(tmp_path / "base", dtype=torch.float16)
    merged = merge(adapters, base=base)
    with pytest.raises(error, match=words):
        save_full_model(merged, tmp_path / "full")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]


def test_a_merge_without_its_base_has_no_full_model(tmp_path):
    with pytest.raises(UsageError, match="base"):
        save_full_model(merge(pair()), tmp_path / "full")


def test_a_disk_without_the_space_is_refused_first(tmp_path, monkeypatch):
    base = base_at(tmp_path / "base")
    usage = shutil._ntuple_diskusage(1, 1, 10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(OutputError, match="and its disk has"):
        save_full_model(merge(pair(), base=base), tmp_path / "new" / "full")
    assert [p.name for p in tmp_path.iterdir()] == ["base"]
