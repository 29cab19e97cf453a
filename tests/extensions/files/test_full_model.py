"""A merge added to its base, against dense weights, peft, and loraprobe's own composition.

Then --full-model: what the command line writes, says and refuses, and `verify` of it. Every kind
of adapter and layer is in tests/core/compatibility/test_kinds.py.
"""

import contextlib
import json
import os
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import making
import pytest
import torch
from forks import Fork
from making import call
from merges import merge, ties_dense, trimmed
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import loraprobe
from loraprobe.adapters import adapter_of
from loraprobe.base import open_base
from loraprobe.base.loading import load_model
from loraprobe.composition import Composition, composed
from loraprobe.demo import shipped_world
from loraprobe.errors import BaseError, CompatibilityError, OutputError, UsageError
from loraprobe.extensions.files import full_model
from loraprobe.extensions.files.full_model import save_full_model
from loraprobe.extensions.files.verification import verification_answer
from loraprobe.front_matter import read_front_matter
from loraprobe.records import BY_PROMPT, Command
from loraprobe.routing.constant import ConstantGates

pytest.importorskip("transformers", minversion="5.24", reason="full models are refused below")

UP = "model.layers.0.mlp.up_proj"
UPS = {f"model.layers.{i}.mlp.up_proj": (24, 16) for i in range(2)}
SHARES = (0.7, -0.4)


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
    merged = merge(adapters, "task_arithmetic", weights=SHARES, base=base)
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
            w * making.dense(a.modules[path]) for w, a in zip(SHARES, adapters, strict=True)
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


@pytest.mark.parametrize("method", ["ties:density=0.5", "dare_linear", "della", "slerp"])
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
    assert (merged.compression_error > 0.05) == (method != "slerp")


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


# --full-model

FILES = {"README.md", "config.json", "generation_config.json", "model.safetensors"}
FILES |= {"tokenizer.json", "tokenizer_config.json"}
WEIGHTS, CARD = "model.safetensors", "README.md"


@pytest.fixture
def world(tmp_path, small_base):
    """The arguments of a merge of two adapters of the small base."""
    shapes = {p: s for p, s in open_base(small_base).shapes.items() if "self_attn" in p}
    refs = making.saved_pair(tmp_path, shapes, scaling=0.01)
    return [*refs, "--base", small_base]


def done(*arguments) -> str:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments) -> str:
    result = call(*arguments)
    assert isinstance(result.exception, SystemExit) and result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    return line


def test_a_directory_that_transformers_loads_alone(world, tmp_path, small_base):
    told = done("merge", *world, "--method", "sum", "--full-model", tmp_path / "full")
    assert "rounding to the base's dtype" in told
    assert {path.name for path in (tmp_path / "full").iterdir()} == FILES
    for name in FILES - {CARD, "config.json", WEIGHTS}:
        assert (tmp_path / "full" / name).read_bytes() == (small_base / name).read_bytes()
    AutoTokenizer.from_pretrained(tmp_path / "full")
    found = making.hidden(AutoModelForCausalLM.from_pretrained(tmp_path / "full").eval())
    base = load_model(open_base(small_base))
    adapters = tuple(loraprobe.load(ref) for ref in world[:2])
    with composed(base, Composition("sum", adapters, ConstantGates.ones(2))):
        torch.testing.assert_close(found, making.hidden(base), rtol=1e-5, atol=1e-5)


def test_the_card_says_what_it_is(world, tmp_path):
    done("merge", *world, "--method", "ties", "--full-model", tmp_path / "full")
    card = (tmp_path / "full" / CARD).read_text()
    matter = read_front_matter(card)
    assert matter["base_model_relation"] == "merge" and matter["library_name"] == "transformers"
    assert matter["base_model"] == "owner/base" and "lora" not in matter["tags"]
    assert matter["loraprobe"]["full_model"] is True and matter["loraprobe"]["base"]["sha256"]
    assert "from the base and 2 adapters" in card
    assert "PeftModel" not in card and 'AutoModelForCausalLM.from_pretrained(".")' in card
    assert str(tmp_path) not in card + (tmp_path / "full" / "config.json").read_text()


def test_the_adapter_beside_it_is_the_one_that_is_written_alone(world, tmp_path):
    merge = ["merge", *world, "--method", "ties"]
    done(*merge, "-o", tmp_path / "out", "--full-model", tmp_path / "full")
    done(*merge, "-o", tmp_path / "alone")
    for name in ("adapter_model.safetensors", "adapter_config.json", CARD):
        both = [(tmp_path / place / name).read_bytes() for place in ("out", "alone")]
        assert both[0] == both[1]


def test_what_is_told_of_a_full_model_alone_is_not_that_of_an_adapter(world, tmp_path):
    merge = ["merge", *world, "--method", "ties", "--json"]
    full = json.loads(call(*merge, "--full-model", tmp_path / "full").stdout)
    cut = json.loads(call(*merge, "--rank", "2", "-o", tmp_path / "out").stdout)

    def figure(document, name):
        rows = [row for row in document["diagnostics"] if row["name"] == name]
        return next(row["value"] for row in rows if row["adapters"] == ["ties"])

    assert figure(full, "compression_error") == 0 < figure(cut, "compression_error")
    change = sum(
        float((now.double() - then.double()).square().sum())
        for now, then in _both(tmp_path / "full", world[-1])
    )
    assert figure(full, "norm") == pytest.approx(change**0.5, rel=1e-4)
    codes = {issue["code"] for issue in full["compatibility"]["issues"]}
    assert "compression-lost" not in codes
    assert any(i["code"] == "compression-lost" for i in cut["compatibility"]["issues"])


@pytest.mark.needs("--serve")
def test_a_server_of_a_full_model_loads_no_adapter(world, tmp_path):
    done = call("merge", *world, "--full-model", tmp_path / "full", "--json")
    commands = json.loads(done.stdout)["serve"]
    assert commands and all("lora" not in command for command in commands)


def _both(full: Path, base: Path):
    now, then = (load_file(place / WEIGHTS) for place in (full, base))
    return [(now[key], then[key]) for key in then]


def test_what_is_done_to_the_files_of_the_base_is_said(world, tmp_path):
    base = Path(shutil.copytree(world[-1], tmp_path / "base"))
    torch.save(load_file(base / WEIGHTS), base / "pytorch_model.bin")
    (base / WEIGHTS).unlink()
    told = done("merge", *world[:2], "--base", base, "--full-model", tmp_path / "full")
    assert "became safetensors" in told and (tmp_path / "full" / WEIGHTS).is_file()


def test_a_link_out_of_the_base_is_not_followed(world, tmp_path):
    base = Path(shutil.copytree(world[-1], tmp_path / "base"))
    (tmp_path / "secret").write_text("{}")
    (base / "chat_template.jinja").symlink_to(tmp_path / "secret")
    told = refused("merge", *world[:2], "--base", base, "--full-model", tmp_path / "full")
    assert "leads out" in told and not (tmp_path / "full").exists()


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear"])
def test_it_is_verified_tensor_by_tensor(world, tmp_path, method):
    full = tmp_path / "full"
    done("merge", *world, "--method", method, "--full-model", full)
    verify = ["verify", full, "--base", world[-1], "--json"]
    assert json.loads(done(*verify))["verified"] is True
    tensors = load_file(full / WEIGHTS)
    for key in ("model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"):
        changed = {k: t.clone() for k, t in tensors.items()}
        changed[key].view(-1)[7] += 0.01 * changed[key].abs().max()
        save_file(changed, full / WEIGHTS, metadata={"format": "pt"})
        assert _failed(verify) == [WEIGHTS]
    save_file(tensors, full / WEIGHTS, metadata={"format": "pt"})
    making.edit(full / "config.json", rms_norm_eps=0.1)
    (full / "tokenizer.json").write_text("{}")
    (full / "modeling.py").write_text("")
    assert _failed(verify) == ["config.json", "files", "tokenizer.json"]


def test_verify_does_not_repeat_a_fault_of_writing(world, tmp_path, monkeypatch):
    """Here the last file is the base's own, in the directory as in every one written after it."""
    base = Path(shutil.copytree(world[-1], tmp_path / "base"))
    load_model(open_base(base)).save_pretrained(base, max_shard_size="200KB")
    (base / WEIGHTS).unlink()
    save = full_model.save_full_model

    def faulty(merged, directory, *rest, **more):
        lost = save(merged, directory, *rest, **more)
        last = max(Path(directory).glob("*.safetensors"))
        shutil.copyfile(base / last.name, last)
        return lost

    monkeypatch.setattr(full_model, "save_full_model", faulty)
    merge = ["merge", *world[:2], "--base", base, "--method", "sum"]
    done(*merge, "--full-model", tmp_path / "full")
    failed = _failed(["verify", tmp_path / "full", "--base", base, "--json"])
    assert failed == [max(tmp_path.glob("full/*.safetensors")).name]


def test_verify_ends_in_a_step_with_all_that_was_given(world, tmp_path):
    full, base = tmp_path / "full", str(world[-1])
    done("merge", *world, "--full-model", full)
    verify = partial(loraprobe.verify, full)
    assert "AutoModelForCausalLM" in str(_step(verify(world[:2], base)))
    shutil.copytree(world[0], tmp_path / "other" / "c")
    changed = load_file(world[0] / "adapter_model.safetensors")
    changed = {key: tensor + 1 for key, tensor in changed.items()}
    save_file(changed, tmp_path / "other" / "c" / "adapter_model.safetensors")
    given = [str(world[0]), str(tmp_path / "other" / "c")]
    shutil.move(world[1], tmp_path.parent / f"{tmp_path.name}-b")
    lacking = verify(given, base)
    (open_,) = [check for check in lacking.checks if check.passed is None]
    assert given[1] in open_.message
    assert _step(lacking) == Command("verify", (str(full), *given, "REF"), (("--base", base),))
    given[1] = str(tmp_path.parent / f"{tmp_path.name}-b")
    wrong = verify(given, full)
    (open_,) = [check for check in wrong.checks if check.passed is None]
    assert str(full) in open_.message
    assert _step(wrong) == Command("verify", (str(full), *given), (("--base", "BASE"),))
    tensors = load_file(full / WEIGHTS)
    tensors["model.norm.weight"] += 1
    save_file(tensors, full / WEIGHTS, metadata={"format": "pt"})
    failed = verify(given, base)
    (open_,) = [check for check in failed.checks if check.passed is False]
    assert open_.message.startswith("model.norm.weight ")
    assert _step(failed) == Command("verify", (str(full), *given), (("--base", base),))


def _step(verification) -> Command:
    commands = [part for _, part in verification_answer(verification).lines]
    (step,) = [part for part in commands if isinstance(part, Command)]
    return step


@pytest.mark.needs("--served")
def test_no_server_is_asked_for_a_full_model(world, tmp_path):
    done("merge", *world, "--full-model", tmp_path / "full")
    line = refused("verify", tmp_path / "full", "--served", "http://localhost:9")
    assert "full model" in line and "--base" not in line


def test_an_old_transformers_is_told_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("loraprobe.extensions.files.full_model.TRANSFORMERS", (99, 0))
    line = refused("merge", tmp_path / "nothing", "--full-model", tmp_path / "full")
    assert "transformers 99.0" in line


def _failed(verify) -> list[str]:
    result = call(*verify)
    assert result.exit_code == 1
    return sorted(c["name"] for c in json.loads(result.stdout)["checks"] if c["passed"] is False)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "give -o DIR"),
        (["--full-model", "full", "--dtype", "bfloat16"], "--dtype"),
        (["--full-model", "full", "-o", "full"], "two directories"),
        (["--full-model", "full/inner", "-o", "full"], "two directories"),
        (["--full-model", "other"], "exists already"),
        (["--full-model", "a", "--overwrite"], "which is read"),
        (["--full-model", "other", "--overwrite"], "more than"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_read(
    world, tmp_path, monkeypatch, more, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    (tmp_path / "b" / "adapter_model.safetensors").write_bytes(b"broken")
    before = sorted(tmp_path.rglob("*"))
    assert words in refused("merge", *world, *more)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux")
def test_a_disk_that_tells_no_size_is_not_called_full(world):
    assert "/proc/other cannot be written" in refused(
        "merge", *world, "--full-model", "/proc/other"
    )


def test_a_recommended_merge_is_written_with_what_was_measured(tmp_path):
    method = ["--system", "task_arithmetic", "--weights", "1,1"]
    out = ["-o", tmp_path / "out", "--full-model", tmp_path / "full"]
    done("merge-and-eval", *making.shipped("skill-and-facts"), *method, "--limit", "30", *out)
    base, full = open_base(shipped_world().base), open_base(tmp_path / "full")
    merged = loraprobe.load(tmp_path / "out").modules
    for path in merged:
        change = full.weight(path) - base.weight(path)
        delta = merged[path].to(torch.float32).delta()
        assert (change - delta).norm() < 0.05 * delta.norm()  # the base is bf16
    card = (tmp_path / "full" / CARD).read_text()
    assert "What was measured" in card and "licence-unknown" in card


def test_advice_that_no_weights_are_writes_none(tmp_path):
    """A router chooses by the prompt."""
    options = ["--system", BY_PROMPT, "--limit", "40", "--full-model", tmp_path / "full", "--json"]
    result = call("merge-and-eval", *making.shipped("keep-both"), *options)
    reasons = json.loads(result.stdout)["verdict"]["reasons"]
    (told,) = [row["message"] for row in reasons if row["code"] == "nothing-written"]
    assert "full" in told and not (tmp_path / "full").exists()


def test_overwriting_replaces_a_full_model(world, tmp_path):
    merge = ["merge", *world, "--full-model", tmp_path / "full"]
    done(*merge)
    first = (tmp_path / "full" / WEIGHTS).read_bytes()
    assert "--overwrite" in refused(*merge)
    done(*merge, "--method", "sum", "--overwrite")
    assert (tmp_path / "full" / WEIGHTS).read_bytes() != first
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "thesis.txt" in refused(*merge, "--overwrite")


def write_slowly() -> None:
    """Half of the weights are written, and then a minute passes."""
    import safetensors.torch

    def slow(tensors, file, **more):
        Path(file).write_bytes(b"half")
        time.sleep(60)

    safetensors.torch.save_file = slow


def test_an_interruption_leaves_nothing(world, tmp_path):
    """^C while the weights are written."""
    place = tmp_path / "new" / "full"
    merge = ["merge", *world, "--full-model", place]
    child = Fork.of_command(merge, tmp_path / "said", write_slowly)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("new/.full.*/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid, signal.SIGINT)
    code, out, err = child.end()
    assert code == 130 and out == "" and "Traceback" not in err
    assert not (tmp_path / "new").exists()
