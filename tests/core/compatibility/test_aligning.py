"""Two classes of one base name its modules differently: what is recognised, written, refused."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from making import call, edit, peft_adapter
from peft import PeftModel
from safetensors.torch import load_file, save_file

from loraprobe.adapters import read_adapter
from loraprobe.base import module_names
from loraprobe.compatibility.aligning import layer_shapes, two_names

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
COMMON = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
COMMON |= {"num_attention_heads": 4}
TEXT = COMMON | {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64}
VISION = COMMON | {"image_size": 28, "patch_size": 14}
SETTINGS = {"r": 4, "lora_alpha": 8}
# The linear layers of the vision tower of Gemma 4 are wrapped.
TARGETS = {"Gemma4": r"model\.(language_model\.)?layers.*(q|up)_proj|.*vision.*q_proj\.linear"}
PLAIN = r".*(q_proj|up_proj|qkv)"
IN_VISION, IN_TEXT = "model.language_model.layers", "model.layers"
# Family -> (text-only class, more of the text's config and of the vision's).
QWEN = {"depth": 2, "num_heads": 4, "out_hidden_size": 32}
LLAMA4 = {"num_local_experts": 2, "intermediate_size_mlp": 48, "moe_layers": [], "pad_token_id": 0}
PROJECTOR = ("projector_input_dim", "projector_output_dim", "vision_output_dim")
PER_LAYER = {"vocab_size_per_layer_input": 64}
ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2]}
NO_ENDS = {"bos_token_id": None, "eos_token_id": None}
FAMILIES: dict[str, tuple[str | None, dict[str, Any], dict[str, Any]]] = {
    "Gemma3": ("Gemma3ForCausalLM", {}, {}),
    "Qwen3_5": ("Qwen3_5ForCausalLM", {"layer_types": ["full_attention"] * 2}, QWEN),
    "Mistral3": ("MistralForCausalLM", {}, {"head_dim": 8}),
    "Llama4": ("Llama4ForCausalLM", LLAMA4, dict.fromkeys(PROJECTOR, 32)),
    "Gemma4": ("Gemma4ForCausalLM", PER_LAYER, {"position_embedding_size": 64}),
    "Qwen2_5_VL": (None, {"rope_parameters": ROPE, **NO_ENDS}, QWEN),
}


def classes(family: str, seed: int = 0) -> tuple[Any, Any]:
    """A tiny model of the class with vision, and one of the text-only class with its weights."""
    text, of_text, of_vision = FAMILIES[family]
    torch.manual_seed(seed)
    configs = {"text_config": TEXT | of_text, "vision_config": VISION | of_vision}
    config = getattr(transformers, f"{family}Config")(**configs)
    full = getattr(transformers, f"{family}ForConditionalGeneration")(config).eval()
    if text is None:
        return full, full
    only = getattr(transformers, text)(full.config.get_text_config()).eval()
    decoder = full.get_decoder()
    only.model = getattr(decoder, "model", decoder)  # the same modules, under another path
    only.lm_head = full.get_output_embeddings()
    return full, only


# Keys of a file by transformers before version 4.52 -> the keys of today, for Qwen2.5-VL.
OLD, NOW = "base_model.model.", "base_model.model.model."
OLDER = {f"{NOW}layers": f"{NOW}language_model.layers", f"{OLD}visual": f"{NOW}visual"}


def renamed(place: Path, names: Mapping[str, str]) -> Path:
    """Replaces the beginnings of the keys of a file."""
    tensors = load_file(place / WEIGHTS)
    for old, new in names.items():
        tensors = {re.sub(f"^{re.escape(old)}", new, k): t for k, t in tensors.items()}
    save_file(tensors, place / WEIGHTS)
    return place


def saved(family: str, place: Path, base: str | None = None, **more: Any) -> tuple[Path, Path]:
    """Adapters `text` and `full` that peft saves from the two classes of a base in the directory.

    base: what their configs name instead of that directory. more: settings of peft. Without a
    text-only class the first has the names of an older version of transformers.
    """
    classes(family)[0].save_pretrained(place / "base")
    for seed, name in enumerate(("full", "text")):
        targets = {"target_modules": TARGETS.get(family, PLAIN)}
        peft_adapter(place / name, classes(family)[seed], seed, **SETTINGS | targets | more)
        edit(place / name / CONFIG, base_model_name_or_path=base or str(place / "base"))
    if FAMILIES[family][0] is None:
        renamed(place / "text", {new: old for old, new in OLDER.items()})
    return place / "text", place / "full"


def logits(full: Any) -> torch.Tensor:
    """What the class with vision answers to a text."""
    decoder = full.get_decoder()  # that of Llama 4 is itself a model with a head
    model = decoder if hasattr(decoder, "lm_head") else full
    with torch.no_grad():
        return model(input_ids=torch.arange(1, 21)[None]).logits


def with_both(family: str, text: Path, full: Path) -> torch.Tensor:
    """What the base answers after peft folded each adapter into its weights, in its own class."""
    whole, only = classes(family)
    if only is whole:  # by the names of today
        text = renamed(shutil.copytree(text, text.parent / "today"), OLDER)
    PeftModel.from_pretrained(only, str(text)).merge_and_unload()
    PeftModel.from_pretrained(whole, str(full)).merge_and_unload()
    return logits(whole)


def roots(place: Path) -> set[str]:
    """The places of layers that a file changes."""
    paths = read_adapter(place).layout
    return {path.split(".0.")[0].split(".1.")[0] for path in paths}


@pytest.mark.parametrize("order", ["text first", "full first"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_merge_of_both_names_is_their_sum_in_one_class(tmp_path, family, order):
    text, full = saved(family, tmp_path)
    pair = (text, full) if order == "text first" else (full, text)
    ended = call("merge", *pair, "--method", "sum", "-o", tmp_path / "made", "--json")
    assert ended.exit_code == 0, ended.output
    issues = json.loads(ended.stdout)["compatibility"]["issues"]
    assert [i["adapters"] for i in issues if i["code"] == "modules-renamed"] == [["text"]]
    assert roots(tmp_path / "made") == roots(full)  # which has modules that the text class lacks
    base = classes(family)[0]
    made = PeftModel.from_pretrained(base, str(tmp_path / "made")).eval().get_base_model()
    torch.testing.assert_close(logits(made), with_both(family, text, full), rtol=1e-3, atol=1e-4)
    assert (logits(made) - logits(classes(family)[0])).abs().max() > 1e-2


@pytest.mark.parametrize("family", [f for f, (text, *_) in FAMILIES.items() if text])
def test_a_merge_has_the_names_of_the_first_adapter_or_of_the_base(tmp_path, family):
    only_text = {"exclude_modules": r".*(vision|visual).*"}
    text, full = saved(family, tmp_path, **only_text)
    want = with_both(family, text, full)
    for pair, base, written in (
        ((text, full), [], text),
        ((full, text), [], full),
        ((text, full), ["--base", tmp_path / "base"], None),
    ):
        made = [*pair, *base, "--method", "sum", "-o", tmp_path / "made", "--overwrite"]
        assert call("merge", *made).exit_code == 0
        whole, only = classes(family)
        model = whole if IN_TEXT not in roots(tmp_path / "made") else only
        PeftModel.from_pretrained(model, str(tmp_path / "made")).merge_and_unload()
        torch.testing.assert_close(logits(whole), want, rtol=1e-3, atol=1e-4)
        written = written or (text if family in ("Qwen3_5", "Llama4") else full)  # loads by default
        assert roots(tmp_path / "made") == roots(written)


def test_names_that_nothing_explains_are_refused_unless_allowed(tmp_path):
    text, full = saved("Gemma3", tmp_path, base="owner/out-of-reach")
    refused = call("merge", text, full, "-o", tmp_path / "made")
    assert refused.exit_code == 2 and not (tmp_path / "made").exists()
    assert IN_TEXT in refused.stderr and IN_VISION in refused.stderr
    assert "--allow" in refused.stderr or "[prefix-mismatch]" in refused.stderr
    assert call("inspect", text, full).exit_code == 1
    given = ["--allow", "prefix-mismatch", "-o", tmp_path / "made"]
    assert call("merge", text, full, *given).exit_code == 0
    assert {IN_TEXT, IN_VISION} <= roots(tmp_path / "made")  # as they stand


@pytest.mark.parametrize(
    ("ours", "theirs", "alike"),
    [
        ("model.layers", "model.language_model.layers", True),
        ("language_model.model.layers", "model.language_model.layers", True),
        ("h", "transformer.h", True),
        ("model.encoder.layers", "model.decoder.layers", False),
        ("model.visual.blocks", "model.language_model.layers", False),
        ("model.layers", "model.layers", False),
    ],
)
def test_what_may_be_two_names(ours, theirs, alike):
    one, other = (layer_shapes({f"{place}.0.q_proj": (4, 4)}) for place in (ours, theirs))
    assert two_names(one, other) == ((ours, theirs) if alike else None)
    assert (two_names(other, one) is not None) == alike
    assert two_names(one, layer_shapes({f"{theirs}.0.q_proj": (4, 5)})) is None  # other shapes
    assert two_names({**one, **other}, other) is None  # one class has both


@pytest.mark.needs("convert")
@pytest.mark.parametrize("family", ["Gemma3", "Qwen3_5", "Qwen2_5_VL"])
def test_convert_writes_the_names_of_a_base_or_of_another_adapter(tmp_path, family):
    text, full = saved(family, tmp_path, exclude_modules=r".*(vision|visual).*")
    for like in (tmp_path / "base", full):
        made = ["-o", tmp_path / "made", "--overwrite", "--like", like]
        assert call("convert", text, *made).exit_code == 0
        assert roots(tmp_path / "made") == roots(full)
    (converted, _), (whole, only) = classes(family), classes(family)
    PeftModel.from_pretrained(converted, str(tmp_path / "made")).merge_and_unload()
    today = text if only is not whole else renamed(text, OLDER)
    PeftModel.from_pretrained(only, str(today)).merge_and_unload()
    torch.testing.assert_close(logits(converted), logits(whole))


@pytest.mark.needs("convert")
def test_convert_refuses_names_that_it_does_not_know(tmp_path):
    text, full = saved("Gemma3", tmp_path)
    for adapter, like, code in ((text, "owner/out-of-reach", 2), (full, text, 2)):
        ended = call("convert", adapter, "-o", tmp_path / "made", "--like", like)
        assert ended.exit_code == code and not (tmp_path / "made").exists()
        assert ended.stderr.count("\n") == 1 and "--like" in ended.stderr


def test_the_server_whose_class_has_other_names_is_named(tmp_path):
    serving = pytest.importorskip("loraprobe.extensions.serve.serving")
    text, full = saved("Gemma3", tmp_path)
    for adapter, accused in ((text, {"vllm"}), (full, set())):
        shown = call("inspect", adapter, "--serve", "all", "--json")
        issues = json.loads(shown.stdout)["compatibility"]["issues"]
        errors = [i for i in issues if i["code"] == "serve-other-class"]
        named = {name for i in errors for name in serving.SERVERS if i["message"].startswith(name)}
        assert named == accused
        assert all("--like" in i["cure"] for i in errors)
    (only,) = serving.serving_issues(read_adapter(full), ["vllm"], text_only(tmp_path))
    assert only.code == "serve-other-class"


def text_only(place: Path) -> Path:
    """The text-only class of a base as a base of its own, by its config alone."""
    classes("Gemma3")[1].config.save_pretrained(place / "only")
    edit(place / "only" / "config.json", architectures=["Gemma3ForCausalLM"])
    return place / "only"


def test_a_config_that_would_build_an_immense_model_tells_no_names(tmp_path):
    place = text_only(tmp_path)
    assert module_names(place) is not None
    shutil.copytree(place, tmp_path / "huge")
    edit(tmp_path / "huge" / "config.json", num_hidden_layers=10**9)
    assert module_names(tmp_path / "huge") is None
