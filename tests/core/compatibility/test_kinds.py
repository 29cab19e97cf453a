"""Every kind of adapter and layer, a line each: what inspect says, what merge and composition do.

"exact" means: what peft loads from a merge of the adapter with itself, and the adapter as the only
expert of a composition, give the outputs of the adapter as peft runs it. A sentence means refused,
with these words.
"""

import functools
import re
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from making import (
    base_tensors,
    generator,
    peft_adapter,
    peft_model,
    random_update,
    tiny_gpt2,
    tiny_llama,
    tiny_model,
    write_adapter,
)
from merges import merge
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from loraprobe.adapters import Adapter, read_adapter
from loraprobe.base import open_base
from loraprobe.compatibility import check
from loraprobe.composition import Composition, composed
from loraprobe.errors import LoraprobeError
from loraprobe.options import Options
from loraprobe.pipeline import commands
from loraprobe.routing.constant import ConstantGates
from loraprobe.session import Session

tiny_mixtral = partial(tiny_model, "Mixtral", num_hidden_layers=1, num_local_experts=3)
tiny_gpt_oss = partial(tiny_model, "GptOss", num_hidden_layers=1, num_local_experts=5, head_dim=8)
tiny_phi3 = partial(tiny_model, "Phi3", num_hidden_layers=1, pad_token_id=0)
biased_llama = partial(
    tiny_model, "Llama", num_hidden_layers=1, attention_bias=True, tie_word_embeddings=False
)


class Convolutions(nn.Module):
    """One convolution of each dimension, with strides and padding, and one with groups."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one = nn.Conv1d(4, 6, 3, padding=1)
        self.two = nn.Conv2d(1, 3, (3, 2), stride=2, padding=1, bias=False)
        self.three = nn.Conv3d(1, 2, 2)
        self.grouped = nn.Conv1d(4, 6, 3, groups=2)

    def forward(self, x):
        """x: [batch, 4, 20]."""
        three = self.three(x.reshape(-1, 1, 4, 4, 5))
        parts = (self.one(x), self.two(x[:, None]), three, self.grouped(x))
        return torch.cat([part.flatten(1) for part in parts], 1)


def outputs(model):
    plain = getattr(model, "base_model", model)
    given = torch.arange(2 * 7).reshape(2, 7) * 5 % 39 + 1
    if isinstance(plain, Convolutions) or isinstance(getattr(plain, "model", None), Convolutions):
        given = torch.randn(2, 4, 20, generator=generator(3))
    with torch.no_grad():
        found = model(given)
    return getattr(found, "logits", found)


@dataclass(frozen=True)
class Kind:
    make: Any
    config: dict[str, Any]
    says: dict[str, str] = field(default_factory=dict)  # code of a finding -> its severity
    merges: str = "exact"
    composes: str = "exact"
    dtype: torch.dtype = torch.float32

    def options(self) -> dict[str, Any]:
        task = None if self.make is Convolutions else "CAUSAL_LM"
        return {"r": 2, "lora_alpha": 3, "task_type": task, **self.config}


def targets(*names: str, **more: Any) -> dict[str, Any]:
    return {"target_modules": list(names), **more}


COPY = {"base-copy": "note"}  # peft saves the embedding itself with factors of it
TIED = COPY | {"shared-weights": "note"}
STACKS = ["experts.gate_up_proj", "experts.down_proj"]
MOE = {"target-parameter": "note"}
DORA, LOST = {"dora-magnitude": "note"}, "would (lose|drop)"
KINDS = {
    "linear": Kind(tiny_llama, targets("q_proj", "down_proj")),
    "rslora": Kind(tiny_llama, targets("q_proj", use_rslora=True)),
    "bf16 factors": Kind(tiny_llama, targets("q_proj", "up_proj"), dtype=torch.bfloat16),
    "fp16 factors": Kind(tiny_llama, targets("q_proj", "up_proj"), dtype=torch.float16),
    "conv1d": Kind(tiny_gpt2, targets("c_attn", "c_fc")),
    "embedding": Kind(tiny_llama, targets("embed_tokens"), COPY | {"tied-embeddings": "warning"}),
    "head": Kind(tiny_llama, targets("lm_head"), COPY | {"tied-embeddings": "warning"}),
    "tied, both": Kind(tiny_llama, targets("embed_tokens", "lm_head"), COPY),
    "tied by peft": Kind(tiny_llama, targets("embed_tokens", ensure_weight_tying=True), TIED),
    "convolutions": Kind(Convolutions, targets("one", "two", "three"), composes="convolution"),
    "convolution with groups": Kind(
        Convolutions, targets("one", "grouped"), {"convolution": "warning"}, LOST, "convolution"
    ),
    "experts (target_parameters)": Kind(
        tiny_mixtral, targets("q_proj", target_parameters=["mlp.experts.down_proj"]), MOE
    ),
    "experts, two parameters": Kind(tiny_mixtral, targets("q_proj", target_parameters=STACKS), MOE),
    "experts, rslora, patterns": Kind(
        tiny_mixtral,
        targets(target_parameters=STACKS, use_rslora=True, rank_pattern={"gate_up_proj": 4}),
        MOE | {"ranks-differ": "note"},
    ),
    "experts, bf16 factors": Kind(
        tiny_mixtral, targets(target_parameters=STACKS[1:]), MOE, dtype=torch.bfloat16
    ),
    "experts, stored as [in, out]": Kind(tiny_gpt_oss, targets(target_parameters=STACKS), MOE),
    "experts, by module names of older models": Kind(  # peft makes parameters of them
        tiny_mixtral, targets("w1", "w2", "w3"), MOE | {"ranks-differ": "note"}
    ),
    # The router, which peft takes for a parameter as well.
    "router of experts": Kind(tiny_mixtral, targets("k_proj", "gate"), MOE),
    "fused": Kind(tiny_phi3, targets("qkv_proj", "gate_up_proj")),
    "dora": Kind(tiny_llama, targets("q_proj", "up_proj", use_dora=True), DORA),
    "dora, conv1d": Kind(tiny_gpt2, targets("c_attn", use_dora=True), DORA),
    "dora, rslora": Kind(
        tiny_llama, targets("v_proj", use_dora=True, use_rslora=True), DORA
    ),
    "dora, convolutions": Kind(
        Convolutions, targets("one", "two", "three", use_dora=True), DORA, composes="convolution"
    ),
    "biases of B, convolutions": Kind(
        Convolutions, targets("one", "two", "three", lora_bias=True), {"lora-bias": "note"},
        composes="convolution",
    ),
    "modules_to_save": Kind(
        tiny_llama, targets("q_proj", modules_to_save=["norm"]), {"modules-to-save": "note"}
    ),
    "modules_to_save, tied": Kind(tiny_llama, targets("q_proj", modules_to_save=["embed_tokens"],
        ensure_weight_tying=True), {"modules-to-save": "note", "shared-weights": "note"}),
    "biases of targets": Kind(biased_llama, targets("o_proj", bias="lora_only"), {"bias": "note"}),
    "all biases": Kind(biased_llama, targets("o_proj", bias="all"), {"bias": "note"}),
    "biases of B": Kind(biased_llama, targets("o_proj", lora_bias=True), {"lora-bias": "note"}),
    "trainable tokens": Kind(
        tiny_llama, targets("q_proj", trainable_token_indices=[1, 3]), {"token-delta": "note"}
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Written:
    """The adapter of a kind as peft writes it, peft's outputs with it, and its place."""

    adapter: Adapter
    outputs: torch.Tensor
    place: Path

    def base(self):
        """The base beside it, or None for convolutions."""
        place = self.place / "base"
        return open_base(place) if place.is_dir() else None


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Name -> what peft writes of this kind, once for all tests."""
    return functools.cache(lambda name: write(KINDS[name], tmp_path_factory.mktemp("kind")))


def write(kind: Kind, tmp_path: Path) -> Written:
    model = kind.make()
    if kind.make is not Convolutions:
        model.save_pretrained(tmp_path / "base")
    path = peft_adapter(tmp_path / "a", kind.make(), 1, **kind.options())
    wrapped = peft_model(kind.make(), 1, **kind.options())
    if kind.dtype is not torch.float32:
        file = path / "adapter_model.safetensors"
        save_file({k: v.to(kind.dtype) for k, v in load_file(file).items()}, file)
        wrapped = PeftModel.from_pretrained(kind.make(), path).eval()
    return Written(read_adapter(path), outputs(wrapped), tmp_path)


def refused(call, words: str):
    with pytest.raises(LoraprobeError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", KINDS)
def test_inspect_says(name, written):
    kind, adapter = KINDS[name], written(name).adapter
    found = commands.inspect([adapter], Session(), base=written(name).base()).audit.compatibility
    codes = {issue.code: issue.severity for issue in found.issues}
    assert {code: codes[code] for code in codes if "base-un" not in code} == kind.says
    assert found.compatible
    # With another adapter, what a composition would drop is an error.
    pair = check([adapter, adapter.renamed("twin")])
    errors = {issue.code for issue in pair.issues if issue.severity == "error"}
    assert errors == {c for c in kind.says if kind.says[c] == "warning"} - {"tied-embeddings"}


@pytest.mark.parametrize("name", KINDS)
def test_merge_does(name, written, tmp_path):
    kind = KINDS[name]
    adapter, expected, base = written(name).adapter, written(name).outputs, written(name).base()
    if base is None:
        base = base_tensors(lambda p: kind.make().get_parameter(f"{p}.weight").flatten(1))
    pair = [adapter, adapter.renamed("twin")]
    if kind.merges != "exact":
        refused(lambda: merge(pair, base=base), kind.merges)
        return
    merged = merge(pair, base=base)
    merged.save(tmp_path / "out")
    loaded = PeftModel.from_pretrained(kind.make(), tmp_path / "out").eval()
    without = outputs(kind.make())
    assert (expected - without).abs().max() > 0.005, "or this test shows nothing"
    # bf16 factors are written in bf16; the cost of that is reported.
    tolerance = 1e-4 + 2 * merged.rounding_error * float((expected - without).abs().max())
    torch.testing.assert_close(outputs(loaded), expected, rtol=1e-3, atol=tolerance)
    assert not [i for i in read_adapter(tmp_path / "out").issues if i.severity == "error"]


@pytest.mark.parametrize("name", [name for name in KINDS if KINDS[name].make is not Convolutions])
def test_full_model_does(name, written, tmp_path):
    """transformers loads the base with the merge in it, which computes what peft does."""
    adapter, expected, base = written(name).adapter, written(name).outputs, written(name).base()
    merged = merge([adapter, adapter.renamed("twin")], base=base)
    full_model = pytest.importorskip("loraprobe.extensions.files.full_model")
    lost = full_model.save_full_model(merged, tmp_path / "full")
    loaded, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "full", output_loading_info=True
    )
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys"))
    torch.testing.assert_close(outputs(loaded.eval()), expected, rtol=1e-4, atol=1e-5)
    assert lost == 0.0  # what float32 rounds is not counted
    untied = {"embedding", "head", "tied, both", "tied by peft", "modules_to_save, tied"}
    assert loaded.config.tie_word_embeddings == (base.tied is not None and name not in untied)


@pytest.mark.parametrize("name", KINDS)
def test_composition_does(name, written):
    kind = KINDS[name]
    adapter, expected = written(name).adapter, written(name).outputs
    model = kind.make()
    before = outputs(model)

    def run():
        with composed(model, Composition("x", (adapter,), ConstantGates((1.0,)))):
            return outputs(model)

    if kind.composes != "exact":
        refused(run, kind.composes)
    else:
        torch.testing.assert_close(run(), expected, rtol=1e-3, atol=1e-5)
    assert torch.equal(outputs(model), before)


def test_an_audit_refuses_what_a_method_would_drop_before_it_loads_anything(written):
    """With --base at hand too; linear methods and routers are not concerned."""
    from loraprobe.pipeline.plan import check_systems

    adapter = written("dora").adapter
    pair = [adapter, adapter.renamed("twin")]
    check_systems(pair, Options(methods=("uniform", "task_arithmetic")))
    check_systems(pair, Options(methods=("ties",), allow=("dora-magnitude",)))
    for chosen in ({"methods": ("uniform", "ties")}, {"systems": ("slerp",)}):
        refused(partial(check_systems, pair, Options(**chosen)), "only a linear method keeps")


# Initialisations


UNTOUCHED = ("True", "False", "gaussian", "eva", "orthogonal", "mica")
CHANGED = ("pissa", "pissa_niter_4", "olora", "corda", "lora_ga", "loftq")


def test_every_initialisation_of_the_installed_peft_has_an_answer():
    """A new name in peft's config is looked at before it is trusted."""
    hint = get_type_hints(LoraConfig, include_extras=False)["init_lora_weights"]

    def names(t):
        inner = get_args(t)
        return [t] if not inner else [n for part in inner for n in names(part)]

    known = {n for n in names(hint) if isinstance(n, str)}
    assert known - {"pissa_niter_[number of iters]"} <= {*UNTOUCHED, *CHANGED}, known


@pytest.mark.parametrize("init", CHANGED)
def test_initialisations_that_changed_the_base_are_refused_with_their_cure(init, tmp_path):
    adapter = made_with(init, tmp_path)
    for purpose in ("inspect", "merge", "route"):
        found = check([adapter], purpose=purpose)
        (issue,) = [i for i in found.issues if i.code == "init-changed-base"]
        assert issue.severity == "error" and init in issue.message
        assert "path_initial_model_for_weight_conversion" in issue.cure
    pair = [adapter, adapter.renamed("twin")]
    with pytest.raises(LoraprobeError, match="init-changed-base"):
        commands.merge(pair, Session())
    refused(lambda: merge(pair), "changes the base weights")
    allowed = merge(pair, allow=["init-changed-base", "duplicate"])
    assert ("warning", "init-changed-base") in {(i.severity, i.code) for i in allowed.issues}
    assert not [i for i in allowed.adapter.issues if i.code == "init-changed-base"]


@pytest.mark.parametrize("init", [True, False, None, *UNTOUCHED[2:]])
def test_initialisations_that_left_the_base_alone_say_nothing(init, tmp_path):
    assert not [i for i in made_with(init, tmp_path).issues if i.code.startswith("init-")]


@pytest.mark.parametrize("init", ["milora", "true", "", "PISSA_niter", "base64"])
def test_initialisations_that_peft_does_not_load_are_refused(init, tmp_path):
    """peft is the oracle: it raises for these."""
    if init:
        config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=init)
        with pytest.raises(ValueError):
            get_peft_model(tiny_llama(), config)
    found = {i.code for i in made_with(init, tmp_path).issues if i.severity == "error"}
    code = "init-changed-base" if "PISSA" in init else "init-unknown"
    assert found == ({code} if init else set())


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora", *UNTOUCHED[2:]])
def test_peft_changes_the_base_for_those_that_are_said_to(init):
    before = tiny_llama().get_submodule("model.layers.0.self_attn.q_proj").weight.detach()
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=init)
    model = get_peft_model(tiny_llama(), config).base_model.model
    after = model.get_submodule("model.layers.0.self_attn.q_proj").get_base_layer().weight
    assert torch.equal(before, after) == (init not in CHANGED)


def made_with(init, place) -> Adapter:
    update, key = random_update(16, 16), "base_model.model.model.layers.0.self_attn.q_proj"
    tensors = {f"{key}.lora_A.weight": update.A, f"{key}.lora_B.weight": update.B}
    return read_adapter(write_adapter(place / "a", tensors, init_lora_weights=init))


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_peft_converted_is_a_plain_lora_of_the_whole_change(init, tmp_path):
    """Trained, saved as it is and saved with peft's conversion: refused, and exact."""
    warnings.simplefilter("ignore")
    config = {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj"], "init_lora_weights": init}
    model = get_peft_model(tiny_llama(), LoraConfig(task_type="CAUSAL_LM", **config))
    model.save_pretrained(str(tmp_path / "start"))
    draw = generator(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=draw))
    model.eval().save_pretrained(str(tmp_path / "raw"))
    start = {"path_initial_model_for_weight_conversion": str(tmp_path / "start")}
    model.save_pretrained(str(tmp_path / "converted"), **start)
    raw, converted = read_adapter(tmp_path / "raw"), read_adapter(tmp_path / "converted")
    path = "model.layers.0.self_attn.q_proj"
    before = tiny_llama().get_submodule(path).weight
    change = model.merge_and_unload().get_submodule(path).weight - before
    assert "init-changed-base" in {i.code for i in check([raw]).issues}
    assert (raw.modules[path].delta() - change).norm() > 0.02 * change.norm()
    assert check([converted]).compatible and not converted.issues
    merged = merge([converted]).adapter.modules[path].delta()
    torch.testing.assert_close(merged, change, rtol=1e-4, atol=1e-5)
    assert not re.search("pissa|olora", str(converted.config["init_lora_weights"]))
