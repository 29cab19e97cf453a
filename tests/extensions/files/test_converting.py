"""convert: what peft and servers read of the written file, and what is refused by name."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from making import (
    call,
    dense,
    edit,
    peft_adapter,
    random_adapter,
    tiny_gpt2,
    tiny_llama,
)
from peft import PeftModel
from safetensors.torch import load_file, save_file

import loraprobe
from loraprobe.adapters import read_adapter
from loraprobe.errors import UsageError
from loraprobe.extensions.files.converting import licence_fields

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
SETTINGS = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "up_proj"]}
Q1 = "model.layers.1.self_attn.q_proj"
PATTERNS = {"rank_pattern": {Q1: 2, "up_proj": 3}, "alpha_pattern": {"v_proj": 3}}


def convert(*arguments: object):
    return call("convert", *arguments)


def logits(model, directory) -> torch.Tensor:
    """What peft computes with an adapter on a model."""
    with torch.no_grad():
        ids = torch.arange(1, 21)[None]
        return PeftModel.from_pretrained(model, str(directory)).eval()(ids).logits


def rename(directory, change) -> None:
    tensors = load_file(directory / WEIGHTS)
    save_file({change(key): t for key, t in tensors.items()}, directory / WEIGHTS)


def to_pickle(directory) -> None:
    torch.save(load_file(directory / WEIGHTS), directory / PICKLE)
    (directory / WEIGHTS).unlink()


untied = partial(tiny_llama, tied=False)
# Name -> (settings of peft, model).
KINDS = {
    "plain": ({}, tiny_llama),
    "rslora": ({"use_rslora": True}, tiny_llama),
    "patterns": (PATTERNS, tiny_llama),
    "rslora and patterns": ({"use_rslora": True, **PATTERNS}, tiny_llama),
    "dora": ({"use_dora": True, "use_rslora": True, **PATTERNS}, tiny_llama),
    "lora bias": ({"lora_bias": True, **PATTERNS}, tiny_llama),
    "whole head": ({"modules_to_save": ["lm_head"], **PATTERNS}, untied),
    "token rows": ({"trainable_token_indices": [3, 1], **PATTERNS}, tiny_llama),
    "expression": ({"target_modules": r".*\.(q|v)_proj", "use_rslora": True}, tiny_llama),
    "layers": ({"layers_to_transform": [1], "use_rslora": True}, tiny_llama),
    "conv1d": ({"target_modules": ["c_attn"], "rank_pattern": {"h.1.attn.c_attn": 2}}, tiny_gpt2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_adapter_is_the_same_function_in_peft(tmp_path, kind):
    settings, model = KINDS[kind]
    peft_adapter(tmp_path / "in", model(), **SETTINGS | settings)
    ended = convert(tmp_path / "in", "-o", tmp_path / "out")
    assert ended.exit_code == 0, ended.output
    one, other = (logits(model(), tmp_path / name) for name in ("in", "out"))
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    assert (one - model().eval()(torch.arange(1, 21)[None]).logits).abs().max() > 1e-2
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert not config["rank_pattern"] and not config["alpha_pattern"]
    assert not config["use_rslora"] and config["use_dora"] == (kind == "dora")


@pytest.mark.parametrize("kind", ["plain", "rslora", "patterns", "rslora and patterns"])
def test_servers_compute_what_peft_does_of_a_converted_file(tmp_path, kind):
    peft_adapter(tmp_path / "in", tiny_llama(), **SETTINGS | KINDS[kind][0])
    convert(tmp_path / "in", "-o", tmp_path / "out")
    serving = pytest.importorskip("loraprobe.extensions.serve.serving")
    issues = serving.serving_issues(read_adapter(tmp_path / "out"), ["all"])
    assert {issue.severity for issue in issues} == {"note"}
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    tensors = load_file(tmp_path / "out" / WEIGHTS)
    for path, update in read_adapter(tmp_path / "in").modules.items():
        A, B = (tensors[f"{PREFIX}{path}.lora_{f}.weight"].double() for f in "AB")
        for rank in (config["r"], len(A)):  # by which servers divide lora_alpha
            error = (config["lora_alpha"] / rank * B @ A - dense(update)).norm() / dense(
                update
            ).norm()
            assert error <= 4 * torch.finfo(torch.float32).eps


KEYS = {
    "twice": lambda key: PREFIX + key,
    "thrice": lambda key: PREFIX * 2 + key,
    "without": lambda key: key.removeprefix(PREFIX),
    "named": lambda key: re.sub(r"(lora_[AB])", r"\1.default", key),
}


@pytest.mark.parametrize("form", ["safetensors", "pickle"])
@pytest.mark.parametrize("keys", KEYS)
def test_keys_and_pickles_are_mended_without_a_changed_bit(tmp_path, keys, form):
    peft_adapter(tmp_path / "sound", tiny_llama(), **SETTINGS)
    shutil.copytree(tmp_path / "sound", tmp_path / "in")
    rename(tmp_path / "in", KEYS[keys])
    if form == "pickle":
        to_pickle(tmp_path / "in")
    ended = convert(tmp_path / "in", "-o", tmp_path / "out")
    assert ended.exit_code == 0, ended.output
    one, other = (load_file(tmp_path / name / WEIGHTS) for name in ("sound", "out"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not (tmp_path / "out" / PICKLE).exists()
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert config["target_modules"] == sorted(SETTINGS["target_modules"])


def test_a_whole_head_with_a_doubled_prefix_keeps_its_place(tmp_path):
    peft_adapter(tmp_path / "in", untied(), **SETTINGS, modules_to_save=["lm_head"])
    wanted = logits(untied(), tmp_path / "in")
    rename(tmp_path / "in", KEYS["twice"])
    assert convert(tmp_path / "in", "-o", tmp_path / "out").exit_code == 0
    torch.testing.assert_close(logits(untied(), tmp_path / "out"), wanted)


def test_compact_keeps_ranks_and_scalings(tmp_path):
    peft_adapter(tmp_path / "in", tiny_llama(), **SETTINGS, **PATTERNS)
    convert(tmp_path / "in", "--compact", "-o", tmp_path / "out")
    one, other = (load_file(tmp_path / name / WEIGHTS) for name in ("in", "out"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_tensors_that_peft_leaves_out_are_dropped_and_named(tmp_path):
    peft_adapter(tmp_path / "in", tiny_llama(), **SETTINGS)
    tensors = load_file(tmp_path / "in" / WEIGHTS)
    lost = f"{PREFIX}{Q1}.lora_magnitude_vector"
    save_file(tensors | {lost: torch.ones(16)}, tmp_path / "in" / WEIGHTS)
    ended = convert(tmp_path / "in", "-o", tmp_path / "out")
    assert ended.exit_code == 0 and "lora_magnitude_vector" in ended.stdout
    assert load_file(tmp_path / "out" / WEIGHTS).keys() == tensors.keys()


def _add(key, tensor, **config):
    def make(directory):
        tensors = load_file(directory / WEIGHTS) | {PREFIX + key: tensor}
        save_file(tensors, directory / WEIGHTS)
        edit(directory / CONFIG, **config)

    return make


DELTA = "model.embed_tokens.token_adapter.trainable_tokens_delta"
COPY = "model.embed_tokens.base_layer.weight"
REFUSED = {
    "unclear-tokens": _add(DELTA, torch.ones(2, 16), trainable_token_indices=[1]),
    "base-copy": _add(COPY, torch.ones(40, 16)),
    "unknown-tensors": _add("model.layers.0.lora_down", torch.ones(2, 2)),
    "weights-untargeted": lambda place: edit(place / CONFIG, target_modules=["q_proj"]),
    "init-changed-base": lambda place: edit(place / CONFIG, init_lora_weights="pissa"),
}


def test_python_converts_as_the_command_line_does(tmp_path):
    peft_adapter(tmp_path / "in", tiny_llama(), 1, **SETTINGS | PATTERNS)
    made = loraprobe.convert(tmp_path / "in")
    made.save(tmp_path / "python")
    assert convert(tmp_path / "in", "-o", tmp_path / "out").exit_code == 0
    python, out = (read_adapter(tmp_path / name) for name in ("python", "out"))
    assert python.sha256 == out.sha256 and python.rank_range == out.rank_range
    compact = loraprobe.convert(tmp_path / "in", portable=False)
    assert compact.adapter.rank_range == read_adapter(tmp_path / "in").rank_range
    with pytest.raises(UsageError, match="no option 'dtype'"):
        loraprobe.convert(tmp_path / "in", dtype="float16")


@pytest.mark.parametrize("code", REFUSED)
def test_what_cannot_be_kept_exactly_is_refused_by_name(tmp_path, code):
    peft_adapter(tmp_path / "in", tiny_llama(), **SETTINGS)
    REFUSED[code](tmp_path / "in")
    ended = convert(tmp_path / "in", "-o", tmp_path / "out")
    assert ended.exit_code == 2 and f"[{code}]" in ended.stderr
    assert not (tmp_path / "out").exists()


def test_a_copy_of_the_base_is_dropped_where_the_base_shows_that_it_is_one(tmp_path):
    base = tiny_llama()
    base.save_pretrained(tmp_path / "base")
    peft_adapter(tmp_path / "in", tiny_llama(), **SETTINGS)
    weight = base.get_input_embeddings().weight.detach().clone()
    _add(COPY, weight)(tmp_path / "in")
    ended = convert(tmp_path / "in", "--base", tmp_path / "base", "-o", tmp_path / "out")
    assert ended.exit_code == 0 and "embed_tokens" in ended.stdout
    one, other = (logits(tiny_llama(), tmp_path / name) for name in ("in", "out"))
    torch.testing.assert_close(other, one)


HEAD = torch.randn(40, 16, generator=torch.Generator().manual_seed(3))
# Name -> (what the file holds, whether the base shares its weights, whether both are one function).
SHARED = {
    "a head over a shared weight": (_add("lm_head.weight", HEAD), True, False),
    "a head of its own": (_add("lm_head.weight", HEAD), False, True),
}


@pytest.mark.parametrize("kind", SHARED)
def test_a_weight_that_peft_writes_over_the_base_is_compared_in_peft(tmp_path, kind):
    spoil, tied, same = SHARED[kind]
    model = partial(tiny_llama, tied=tied)
    model().save_pretrained(tmp_path / "base")
    peft_adapter(tmp_path / "in", model(), **SETTINGS)
    spoil(tmp_path / "in")
    refused = convert(tmp_path / "in", "-o", tmp_path / "out")
    assert refused.exit_code == 2 and "[shared-weights]" in refused.stderr
    ended = convert(tmp_path / "in", "--base", tmp_path / "base", "-o", tmp_path / "out")
    assert (ended.exit_code == 0) == same, ended.output
    given = ["--allow", "shared-weights", "-o", tmp_path / "out", "--overwrite"]
    assert convert(tmp_path / "in", *given).exit_code == 0
    one, other = (logits(model(), tmp_path / name) for name in ("in", "out"))
    assert torch.allclose(one, other, rtol=1e-4, atol=1e-4) == same


def _tie(place) -> None:
    edit(place / CONFIG, ensure_weight_tying=True)


HEADED = _add("lm_head.weight", HEAD)
# Kind -> (what the config adapts, what is done to the file, whether the base shares its weights,
# whether the merge is what peft computes).
TIES = {
    "a head over a shared weight": (["q_proj"], HEADED, True, False),
    "a head of its own": (["q_proj"], HEADED, False, True),
    "an embedding that peft ties": (["q_proj", "embed_tokens"], _tie, True, False),
    "an embedding without a tie": (["q_proj", "embed_tokens"], _tie, False, True),
}


@pytest.mark.parametrize("kind", TIES)
def test_a_merge_that_is_another_function_than_in_peft_is_refused(tmp_path, kind):
    modules, spoil, tied, same = TIES[kind]
    model = partial(tiny_llama, tied=tied)
    model().save_pretrained(tmp_path / "base")
    peft_adapter(tmp_path / "in", model(), **SETTINGS | {"target_modules": modules})
    spoil(tmp_path / "in")
    merge = partial(call, "merge", tmp_path / "in", tmp_path / "in", "-o", tmp_path / "out")
    for ended in (merge(), *([] if same else [merge("--base", tmp_path / "base")])):
        assert ended.exit_code == 2 and "[shared-weights]" in ended.stderr
    assert not (tmp_path / "out").exists()
    given = [] if same else ["--allow", "shared-weights"]
    ended = merge("--base", tmp_path / "base", "--method", "uniform", *given)
    assert ended.exit_code == 0, ended.output
    one, other = (logits(model(), tmp_path / name) for name in ("in", "out"))
    assert torch.allclose(one, other, rtol=1e-4, atol=1e-4) == same


def test_layers_that_peft_ties_are_compared_in_peft(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    tying = {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}
    peft_adapter(tmp_path / "in", tiny_llama(), **SETTINGS | tying)
    given = ["--allow", "base-copy", "-o", tmp_path / "out"]
    assert "[shared-weights]" in convert(tmp_path / "in", *given).stderr
    assert convert(tmp_path / "in", *given, "--base", tmp_path / "base").exit_code == 0
    one, other = (logits(tiny_llama(), tmp_path / name) for name in ("in", "out"))
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


LEFT_OUT = {
    "layers": {"layers_to_transform": [1]},
    "excluded": {"exclude_modules": ["up_proj"]},
    "pattern": {"layers_to_transform": [1], "layers_pattern": ["layers"]},
    "all but some": {"target_modules": "all-linear", "exclude_modules": r".*\.0\..*"},
}


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_what_peft_leaves_out_is_refused_by_all_that_would_apply_it(tmp_path, kind):
    for name, seed in (("in", 0), ("two", 1)):
        peft_adapter(tmp_path / name, tiny_llama(), seed, **SETTINGS)
    whole = logits(tiny_llama(), tmp_path / "in")
    edit(tmp_path / "in" / CONFIG, **LEFT_OUT[kind])
    assert (logits(tiny_llama(), tmp_path / "in") - whole).abs().max() > 1e-2  # peft leaves it out
    pair, out = [tmp_path / "in", tmp_path / "two"], ["-o", tmp_path / "out", "--overwrite"]
    allow = ["--allow", "weights-untargeted"]
    for command, refs in (("merge", pair), ("route", pair), ("convert", pair[:1])):
        refused = call(command, *refs, *out)
        assert refused.exit_code == 2 and "[weights-untargeted]" in refused.stderr
        assert call(command, *refs, *out, *allow).exit_code == 0
    shown = call("inspect", *pair, "--json")
    issues = json.loads(shown.stdout)["compatibility"]["issues"]
    assert shown.exit_code == 1
    assert [i["severity"] for i in issues if i["code"] == "weights-untargeted"] == ["error"]


@pytest.mark.parametrize(
    ("spoil", "code", "compatible"),
    [
        (lambda place: rename(place, lambda key: PREFIX + key), "doubled-prefix", False),
        (lambda place: rename(place, lambda key: key.removeprefix(PREFIX)), "unprefixed-keys",
            True),
        (to_pickle, "pickled", True),
    ],
)  # fmt: skip
def test_a_broken_adapter_ends_in_the_command_that_mends_it(tmp_path, spoil, code, compatible):
    place = peft_adapter(tmp_path / "a", tiny_llama(), 1, **SETTINGS)
    right = logits(tiny_llama(), place)
    spoil(place)
    result = call("inspect", place)
    assert result.exit_code == (0 if compatible else 1)
    told = " ".join(result.stdout.replace("\\\n", " ").split())
    assert told.endswith(f"next loraprobe convert {place} -o DIR")
    found = loraprobe.inspect(place).compatibility.issues
    (issue,) = [issue for issue in found if issue.code == code]
    assert "loraprobe convert a -o DIR" in issue.cure
    assert convert(place, "-o", tmp_path / "out").exit_code == 0
    assert torch.equal(logits(tiny_llama(), tmp_path / "out"), right)


def test_a_defect_that_convert_cannot_mend_does_not_end_in_it(tmp_path):
    place = peft_adapter(tmp_path / "a", tiny_llama(), 1, **SETTINGS)
    to_pickle(place)
    edit(place / CONFIG, r=3)
    result = call("inspect", place)
    assert result.exit_code == 1 and "loraprobe convert" not in result.stdout
    assert "fix       Correct r or rank_pattern" in result.stdout


OTHER = {"license": "other"}
HTTP = {"license_link": "https://x.org/LICENSE"}


@pytest.mark.parametrize(
    ("matter", "kept"),
    [
        ({"license": "mit", **HTTP}, {"license": "mit"}),
        ({"license": " Apache-2.0 "}, {"license": "apache-2.0"}),
        ({"license": "other", "license_name": "my-own_1", **HTTP},
         {**OTHER, "license_name": "my-own_1", **HTTP}),
        ({"license": "All rights are mine. <b>Send money.</b>" * 9}, OTHER),
        ({"license": "other", "license_name": "Send money to me"}, OTHER),
        ({"license": "other", "license_link": "javascript:alert(1)"}, OTHER),
        ({"license": "other", "license_link": "https://x.org/)[a](javascript:b)"}, OTHER),
        ({"license": "other", "license_link": "https://x.org/" + "a" * 5000}, OTHER),
        ({"license": "other", "license_link": "https://me:secret@x.org/"}, OTHER),
        ({"license": ["mit"], **HTTP}, {}),
        (HTTP, {}),
        ({}, {}),
    ],
)  # fmt: skip
def test_only_known_identifiers_and_http_links_of_a_licence_stand_in_a_card(matter, kept):
    assert licence_fields(matter) == kept


def test_a_file_turns_off_what_is_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    random_adapter("one").save(tmp_path / "one")
    (tmp_path / "run.yaml").write_text("ref: one\nportable: false\n")
    shown = call("convert", "--config", "run.yaml", "-o", "out", "--json")
    assert "--compact" in json.loads(shown.stdout)["provenance"]["arguments"]


def test_the_head_of_tinker_is_written_under_the_name_of_transformers(tmp_path):
    peft_adapter(tmp_path / "in", untied(), **SETTINGS | {"target_modules": ["q_proj", "lm_head"]})
    wanted = logits(untied(), tmp_path / "in")
    tensors = load_file(tmp_path / "in" / WEIGHTS)
    factors = {key: tensor for key, tensor in tensors.items() if "lora_" in key}  # as there
    save_file(factors, tmp_path / "in" / WEIGHTS)
    rename(tmp_path / "in", lambda key: key.replace("lm_head", "model.unembed_tokens"))
    edit(tmp_path / "in" / CONFIG, target_modules="all-linear")
    done = convert(tmp_path / "in", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    torch.testing.assert_close(logits(untied(), tmp_path / "out"), wanted)
    codes = {issue.code for issue in read_adapter(tmp_path / "in").issues}
    assert "modules-renamed" in codes


# Files of mlx-lm.

MLX_LM = Path(__file__).with_name("mlx_lm")  # mlx-lm itself wrote them
MLX = "adapters.safetensors"


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_of_mlx_lm_becomes_one_of_peft_and_the_reverse(tmp_path, kind):
    """tests/extensions/files/mlx_lm/make.py checks the second with mlx-lm's own loading code."""
    assert convert(MLX_LM / kind, "-o", tmp_path / "peft").exit_code == 0
    made, given = read_adapter(tmp_path / "peft"), read_adapter(MLX_LM / kind)
    assert not made.issues and made.variant == kind
    for path, update in given.modules.items():
        torch.testing.assert_close(made.modules[path].delta(), update.delta())
    done = convert(tmp_path / "peft", "--to", "mlx", "-o", tmp_path / "mlx")
    assert done.exit_code == 0 and "vllm" not in done.output, done.output
    assert sorted(file.name for file in (tmp_path / "mlx").iterdir()) == [
        "README.md",
        CONFIG,
        MLX,
    ]
    ours, theirs = (load_file(place / MLX) for place in (tmp_path / "mlx", MLX_LM / kind))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    one, other = (
        json.loads((place / CONFIG).read_text()) for place in (tmp_path / "mlx", MLX_LM / kind)
    )
    other["lora_parameters"]["keys"].sort()
    # Without a base nobody knows which layer is the last, from which mlx-lm counts: -1 takes all.
    assert one == {key: other[key] for key in one} | {"num_layers": -1}
    assert "library_name: mlx" in (tmp_path / "mlx" / "README.md").read_text()


@pytest.mark.parametrize(
    ("config", "model", "words"),
    [
        ({"modules_to_save": ["lm_head"]}, untied, "whole weights"),
        ({"lora_bias": True}, tiny_llama, "biases of B"),
        ({"trainable_token_indices": [3]}, tiny_llama, "trained rows"),
        ({"target_modules": ["c_attn"], "fan_in_fan_out": True}, tiny_gpt2, "no linear ones"),
        ({"target_modules": ["q_proj", "lm_head"]}, untied, "unless --base shows"),
    ],
)
def test_what_mlx_lm_has_no_place_for_is_refused_by_name(tmp_path, config, model, words):
    place = peft_adapter(tmp_path / "a", model(), **(SETTINGS | config))
    done = convert(place, "--to", "mlx", "-o", tmp_path / "out", "--allow", "base-copy")
    assert done.exit_code == 2 and not (tmp_path / "out").exists()
    assert words in " ".join(done.stderr.split()), done.stderr


@pytest.mark.parametrize(("layer", "adapted"), [(0, 2), (1, 1)])
def test_mlx_lm_adapts_every_layer_of_the_file(tmp_path, layer, adapted):
    """It takes `model.layers[-num_layers:]`, or all, and refuses or drops tensors of others."""
    untied().save_pretrained(tmp_path / "base")
    peft_adapter(tmp_path / "a", untied(), layers_to_transform=[layer], **SETTINGS)
    for base, wanted in ([], -1), (["--base", tmp_path / "base"], adapted):
        out = tmp_path / f"out{wanted}"
        assert convert(tmp_path / "a", *base, "--to", "mlx", "-o", out).exit_code == 0
        assert json.loads((out / CONFIG).read_text())["num_layers"] == wanted


def test_a_head_of_its_own_is_written_for_mlx_lm_and_ranks_become_one(tmp_path):
    untied().save_pretrained(tmp_path / "base")
    settings = SETTINGS | PATTERNS | {"target_modules": ["q_proj", "v_proj", "lm_head"]}
    place = peft_adapter(tmp_path / "a", untied(), layers_to_transform=None, **settings)
    to_mlx = ["--base", tmp_path / "base", "--to", "mlx", "-o", tmp_path / "out"]
    refused = convert(place, *to_mlx, "--compact")
    assert refused.exit_code == 2 and "--compact" in refused.stderr
    assert not (tmp_path / "out").exists()
    done = convert(place, *to_mlx)
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "out" / CONFIG).read_text())
    assert config["num_layers"] == 2
    assert config["lora_parameters"]["keys"] == [
        "lm_head",
        "self_attn.q_proj",
        "self_attn.v_proj",
    ]
    given, made = read_adapter(place), read_adapter(tmp_path / "out")
    for path, update in given.modules.items():
        torch.testing.assert_close(made.modules[path].delta(), update.delta())
    assert convert(place, "--to", "gguf", "-o", tmp_path / "no").exit_code == 2
