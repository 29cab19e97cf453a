"""Adapter files and configs that peft reads differently than they appear."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import making
import torch
from torch import Tensor

from adversarial import call, case, cases, ended, outcome

ROOT = "base_model.model."
Q = "model.layers.0.self_attn.q_proj"


def factors(*paths: str, inp: int = 16) -> dict[str, Tensor]:
    """A and B of rank 4 for modules of 16 outputs, under peft's keys."""
    found = {}
    for number, path in enumerate(paths or (Q,)):
        update = making.random_update(16, inp, 4, seed=number)
        found |= {f"{ROOT}{path}.lora_A.weight": update.A, f"{ROOT}{path}.lora_B.weight": update.B}
    return found


def adapter(place: Path, tensors: dict[str, Tensor] | None = None, **config: Any) -> Path:
    return making.write_adapter(place / "a", tensors or factors(), **config)


def inspected(directory: Path, code: str) -> str:
    """How inspect ends, and whether it says a code of a finding."""
    result = call("inspect", directory, "--json")
    end = ended(result)
    if end not in ("exit 0", "exit 1"):
        return end
    found = json.loads(result.stdout)["compatibility"]["issues"]
    return f"{end}, {code}" if code in {issue["code"] for issue in found} else end


def merged(directory: Path, place: Path, key: str) -> str:
    """How merging an adapter alone ends, and the value of a key in the config that it writes."""
    ended = outcome("merge", directory, "-o", place / "out", "--dtype", "float32")
    config = place / "out" / "adapter_config.json"
    return f"{ended}, {key} {json.loads(config.read_text())[key]}" if config.is_file() else ended


@case("lora-bias-unasked")
def _(place: Path) -> str:
    tensors = factors() | {f"{ROOT}{Q}.lora_B.bias": torch.ones(16)}
    return merged(adapter(place, tensors, lora_bias=False), place, "lora_bias")


@case("magnitudes-unasked")
def _(place: Path) -> str:
    tensors = factors() | {f"{ROOT}{Q}.lora_magnitude_vector": torch.ones(16)}
    return merged(adapter(place, tensors, use_dora=False), place, "use_dora")


@case("magnitude-lost")
def _(place: Path) -> str:
    tensors = factors(Q, Q.replace("0", "1"))
    tensors[f"{ROOT}{Q}.lora_magnitude_vector"] = torch.ones(16)
    return inspected(adapter(place, tensors, use_dora=True), "missing-tensors")


@case("base-weight")
def _(place: Path) -> str:
    tensors = factors() | {f"{ROOT}{Q}.base_layer.weight": torch.ones(16, 16)}
    return merged(adapter(place, tensors), place, "use_dora")


def scaling(place: Path, key: str) -> str:
    """The scaling of Q where `key` gives another alpha, by loraprobe and by peft."""
    from peft import LoraConfig, get_peft_model

    from loraprobe.adapters import read_adapter
    from loraprobe.errors import AdapterError

    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], alpha_pattern={key: 4})
    try:
        layer = get_peft_model(making.tiny_llama(), config).base_model.model.get_submodule(Q)
        theirs = f"{layer.scaling['default']:g}"
    except Exception as error:
        theirs = type(error).__name__
    try:
        ours = f"{read_adapter(adapter(place, alpha_pattern={key: 4})).layout[Q].scaling:g}"
    except AdapterError:
        ours = "refused"
    return f"{ours}, peft {theirs}"


PATTERNS = {
    "posix": "q[[:punct:]]proj",
    "fuzzy": "(?:q_proi){e<=1}",
    "flags": "(?i)Q_PROJ",
    "property": r"\p{L}_proj",
    "counts": "(?:a{99999999}){9999999}",
}
cases("pattern", PATTERNS)(scaling)


@case("targets-nested")
def _(place: Path) -> str:
    return inspected(adapter(place, target_modules="(" * 3000 + ")" * 3000), "targets-unreadable")


@case("targets-without-end")
def _(place: Path) -> str:
    directory = adapter(place, factors("a" * 60), target_modules="((a|aa)+)+c")
    return inspected(directory, "targets-unreadable")


@case("verify-without-end")
def _(place: Path) -> str:
    out = place / "out"
    source = adapter(place, factors("a" * 60), target_modules=["a" * 60])
    outcome("merge", source, "--dtype", "float32", "-o", out)
    file = out / "adapter_config.json"
    config = json.loads(file.read_text()) | {"target_modules": "((a|aa)+)+c"}
    file.write_text(json.dumps(config))
    return outcome("verify", out)


@case("adapter-config-nested")
def _(place: Path) -> str:
    directory = adapter(place)
    file = directory / "adapter_config.json"
    file.write_text(file.read_text()[:-1] + ', "x": ' + "[" * 3000 + "]" * 3000 + "}")
    return outcome("inspect", directory)


def reads(place: Path, **found: Any) -> str:
    """Whether merging.merge takes the adapter."""
    from loraprobe.adapters import read_adapter
    from loraprobe.errors import LoraprobeError
    from loraprobe.merging import merge

    try:
        merge([read_adapter(adapter(place, **found))])
    except LoraprobeError:
        return "refused"
    return "merged"


@case("pissa-merged")
def _(place: Path) -> str:
    return reads(place, init_lora_weights="pissa_niter_4")


@case("initialisation-unknown")
def _(place: Path) -> str:
    return inspected(adapter(place, init_lora_weights="milora"), "init-unknown")


@case("trainer-keys")
def _(place: Path) -> str:
    swift = {"lora_dtype": None, "lorap_lr_ratio": 16.0, "lorap_emb_lr": 1e-6, "swift_type": "LORA"}
    return inspected(adapter(place, **swift), "trainer-config")


@case("shards")
def _(place: Path) -> str:
    from loraprobe.adapters import read_adapter
    from loraprobe.errors import AdapterError

    directory = adapter(place)
    single = directory / "adapter_model.safetensors"
    for number in (1, 2):
        (directory / f"adapter_model-0000{number}-of-00002.safetensors").write_bytes(
            single.read_bytes()
        )
    single.unlink()
    (directory / "adapter_model.safetensors.index.json").write_text('{"weight_map": {}}')
    try:
        read_adapter(directory)
    except AdapterError as error:
        neither = "neither adapter_model.safetensors nor adapter_model.bin"
        return neither if neither in str(error) else "shards" if "shards" in str(error) else "?"
    return "read"


@case("layer-superscript")
def _(place: Path) -> str:
    return outcome("inspect", adapter(place, factors("model.layers.².q_proj")))


@case("layer-of-5000-digits")
def _(place: Path) -> str:
    path = f"model.layers.{'9' * 5000}.self_attn.q_proj"
    return outcome("inspect", adapter(place, factors(path), layers_to_transform=[0, 1]))


@case("number-of-401-digits")
def _(place: Path) -> str:
    return outcome("inspect", adapter(place, lora_alpha=10**400))


@case("surrogate-in-config")
def _(place: Path) -> str:
    return outcome("inspect", adapter(place, target_modules=["q_proj", "\ud800"]), "--json")


@case("surrogate-in-pickle")
def _(place: Path) -> str:
    tensors = factors() | {"x\ud800.weight": torch.ones(1)}
    return outcome("inspect", making.write_adapter(place / "a", tensors, pickle=True), "--json")


@case("key-that-is-a-number")
def _(place: Path) -> str:
    tensors: Any = factors() | {3: torch.ones(1)}
    return outcome("inspect", making.write_adapter(place / "a", tensors, pickle=True))


@case("rank-of-1e9")
def _(place: Path) -> str:
    return inspected(adapter(place, r=10**9), "rank-contradicts-config")


@case("many-layers")
def _(place: Path) -> str:
    tensors = factors(*(f"model.layers.{n}.self_attn.q_proj" for n in range(200)), inp=1)
    return outcome("inspect", adapter(place, tensors, layers_to_transform=[*range(200_000)]))


@case("base-of-another-machine")
def _(place: Path) -> str:
    directory = adapter(place, base_model_name_or_path="/home/alice/secret/base")
    return inspected(directory, "base-is-a-path")
