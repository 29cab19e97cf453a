"""Adapter files and configs that peft reads differently than they appear."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import making
import torch
from torch import Tensor

from adversarial import case, outcome

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
    from typer.testing import CliRunner

    from loraprobe.cli import app

    result = CliRunner().invoke(app, ["inspect", str(directory), "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return f"traceback {type(result.exception).__name__}"
    if result.exit_code == 2:
        return "exit 2"
    found = json.loads(result.stdout)["compatibility"]["issues"]
    said = f", {code}" if code in {issue["code"] for issue in found} else ""
    return f"exit {result.exit_code}{said}"


def merged(directory: Path, place: Path, key: str) -> str:
    """How merging an adapter alone ends, and the value of a key in the config that it writes."""
    ended = outcome("merge", directory, "-o", place / "out", "--dtype", "float32")
    config = place / "out" / "adapter_config.json"
    return f"{ended}, {key} {json.loads(config.read_text())[key]}" if config.is_file() else ended


@case(
    "lora-bias-unasked",
    "`lora_bias: false`, and `lora_B.bias` in the file, which peft leaves out; merged",
    before="exit 0, lora_bias True",
    now="exit 0, lora_bias False",
)
def lora_bias_unasked(place: Path) -> str:
    tensors = factors() | {f"{ROOT}{Q}.lora_B.bias": torch.ones(16)}
    return merged(adapter(place, tensors, lora_bias=False), place, "lora_bias")


@case(
    "magnitudes-unasked",
    "`use_dora: false`, and DoRA magnitudes in the file, which peft leaves out; merged",
    before="exit 2",
    now="exit 0, use_dora False",
)
def magnitudes_unasked(place: Path) -> str:
    tensors = factors() | {f"{ROOT}{Q}.lora_magnitude_vector": torch.ones(16)}
    return merged(adapter(place, tensors, use_dora=False), place, "use_dora")


@case(
    "magnitude-lost",
    "DoRA on two modules, the magnitudes of one",
    before="exit 0",
    now="exit 1, missing-tensors",
)
def magnitude_lost(place: Path) -> str:
    tensors = factors(Q, Q.replace("0", "1"))
    tensors[f"{ROOT}{Q}.lora_magnitude_vector"] = torch.ones(16)
    return inspected(adapter(place, tensors, use_dora=True), "missing-tensors")


@case(
    "base-weight",
    "`q_proj.base_layer.weight` in the file, which peft writes over the base's weight; merged",
    before="exit 0, use_dora False",
    now="exit 2",
)
def base_weight(place: Path) -> str:
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


@case(
    "pattern-posix",
    "alpha_pattern with `q[[:punct:]]proj`: the scaling",
    before="1, peft 2",
    now="2, peft 2",
)
def pattern_posix(place: Path) -> str:
    return scaling(place, "q[[:punct:]]proj")


@case(
    "pattern-fuzzy",
    "alpha_pattern with `(?:q_proi){e<=1}`, which regex takes for one error: the scaling",
    before="1, peft 2",
    now="2, peft 2",
)
def pattern_fuzzy(place: Path) -> str:
    return scaling(place, "(?:q_proi){e<=1}")


@case(
    "pattern-flags",
    "alpha_pattern with `(?i)Q_PROJ`, a flag that is not at the start once peft has put it in",
    before="1, peft error",
    now="refused, peft error",
)
def pattern_flags(place: Path) -> str:
    return scaling(place, "(?i)Q_PROJ")


@case(
    "pattern-property",
    r"alpha_pattern with `\p{L}_proj`, which `re` does not have",
    before="1, peft error",
    now="refused, peft error",
)
def pattern_property(place: Path) -> str:
    return scaling(place, r"\p{L}_proj")


@case(
    "pattern-counts",
    "alpha_pattern with `(?:a{99999999}){9999999}`, which regex unrolls",
    before="MemoryError after 6 GB",
    now="refused, peft 2",
)
def pattern_counts(place: Path) -> str:
    return scaling(place, "(?:a{99999999}){9999999}")


@case(
    "targets-nested",
    "target_modules of 3,000 nested brackets",
    before="traceback RecursionError",
    now="exit 1, targets-unreadable",
)
def targets_nested(place: Path) -> str:
    return inspected(adapter(place, target_modules="(" * 3000 + ")" * 3000), "targets-unreadable")


@case(
    "targets-without-end",
    "target_modules `((a|aa)+)+c`, for a module called aaaa...",
    before="exit 0",
    now="exit 1, targets-unreadable",
)
def targets_without_end(place: Path) -> str:
    directory = adapter(place, factors("a" * 60), target_modules="((a|aa)+)+c")
    return inspected(directory, "targets-unreadable")


@case(
    "verify-without-end",
    "the same in a merge that is verified, which peft matches without a limit",
    before="no end in 60 s",
    now="exit 1",
)
def verify_without_end(place: Path) -> str:
    out = place / "out"
    source = adapter(place, factors("a" * 60), target_modules=["a" * 60])
    outcome("merge", source, "--dtype", "float32", "-o", out)
    file = out / "adapter_config.json"
    config = json.loads(file.read_text()) | {"target_modules": "((a|aa)+)+c"}
    file.write_text(json.dumps(config))
    return outcome("verify", out)


@case(
    "adapter-config-nested",
    "a config with 3,000 lists in one another",
    before="exit 2",
    now="exit 2",
)
def config_nested(place: Path) -> str:
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


@case(
    "pissa-merged",
    "`init_lora_weights: pissa_niter_4`, merged by loraprobe.merging.merge",
    before="merged",
    now="refused",
)
def pissa_merged(place: Path) -> str:
    return reads(place, init_lora_weights="pissa_niter_4")


@case(
    "initialisation-unknown",
    "`init_lora_weights: milora`, which peft does not know",
    before="exit 0",
    now="exit 1, init-unknown",
)
def initialisation_unknown(place: Path) -> str:
    return inspected(adapter(place, init_lora_weights="milora"), "init-unknown")


@case(
    "trainer-keys",
    "ms-swift's `lorap_emb_lr` in the config",
    before="exit 1",
    now="exit 0, trainer-config",
)
def trainer_keys(place: Path) -> str:
    swift = {"lora_dtype": None, "lorap_lr_ratio": 16.0, "lorap_emb_lr": 1e-6, "swift_type": "LORA"}
    return inspected(adapter(place, **swift), "trainer-config")


@case(
    "shards",
    "weights in two shards with an index, which peft does not read: what the message names",
    before="neither adapter_model.safetensors nor adapter_model.bin",
    now="shards",
)
def shards(place: Path) -> str:
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


@case(
    "layer-superscript",
    "a module in layer ² of the model",
    before="traceback ValueError",
    now="exit 0",
)
def layer_superscript(place: Path) -> str:
    return outcome("inspect", adapter(place, factors("model.layers.².q_proj")))


@case(
    "layer-of-5000-digits",
    "a module in a layer whose number has 5,000 digits",
    before="traceback ValueError",
    now="exit 0",
)
def layer_of_5000_digits(place: Path) -> str:
    path = f"model.layers.{'9' * 5000}.self_attn.q_proj"
    return outcome("inspect", adapter(place, factors(path), layers_to_transform=[0, 1]))


@case(
    "number-of-401-digits",
    "lora_alpha of 401 digits",
    before="traceback OverflowError",
    now="exit 2",
)
def number_of_401_digits(place: Path) -> str:
    return outcome("inspect", adapter(place, lora_alpha=10**400))


@case(
    "surrogate-in-config",
    "a lone surrogate in target_modules, inspected with --json",
    before="traceback UnicodeEncodeError",
    now="exit 2",
)
def surrogate_in_config(place: Path) -> str:
    return outcome("inspect", adapter(place, target_modules=["q_proj", "\ud800"]), "--json")


@case(
    "surrogate-in-pickle",
    "a lone surrogate in the key of a pickled tensor",
    before="traceback UnicodeEncodeError",
    now="exit 2",
)
def surrogate_in_pickle(place: Path) -> str:
    tensors = factors() | {"x\ud800.weight": torch.ones(1)}
    return outcome("inspect", making.write_adapter(place / "a", tensors, pickle=True), "--json")


@case(
    "key-that-is-a-number",
    "a pickled state dict in which a key is a number",
    before="traceback TypeError",
    now="exit 2",
)
def key_that_is_a_number(place: Path) -> str:
    tensors: Any = factors() | {3: torch.ones(1)}
    return outcome("inspect", making.write_adapter(place / "a", tensors, pickle=True))


@case(
    "rank-of-1e9",
    "`r: 1000000000` for factors of rank 4",
    before="exit 1, rank-contradicts-config",
    now="exit 1, rank-contradicts-config",
)
def rank_of_1e9(place: Path) -> str:
    return inspected(adapter(place, r=10**9), "rank-contradicts-config")


@case(
    "many-layers",
    "layers_to_transform of 200,000 numbers",
    before="exit 0",
    now="exit 0",
)
def many_layers(place: Path) -> str:
    tensors = factors(*(f"model.layers.{n}.self_attn.q_proj" for n in range(200)), inp=1)
    return outcome("inspect", adapter(place, tensors, layers_to_transform=[*range(200_000)]))


@case(
    "base-of-another-machine",
    "base_model_name_or_path is `/home/alice/secret/base`",
    before="exit 0",
    now="exit 0, base-is-a-path",
)
def base_of_another_machine(place: Path) -> str:
    directory = adapter(place, base_model_name_or_path="/home/alice/secret/base")
    return inspected(directory, "base-is-a-path")
