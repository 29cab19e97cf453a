"""Adapter files and configs that peft reads differently than they appear."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import making
import torch
from torch import Tensor

from adversarial import call, case, cases, ended, outcome
from adversarial.errors import REFUSED, tiny, told
from loraprobe.cache import file_hash
from loraprobe.front_matter import declared_licence

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


MERGED: dict[str, tuple[dict[str, Tensor], dict[str, Any], str]] = {
    "lora-bias-unasked": ({f"{Q}.lora_B.bias": torch.ones(16)}, {"lora_bias": False}, "lora_bias"),
    "magnitudes-unasked": (
        {f"{Q}.lora_magnitude_vector": torch.ones(16)}, {"use_dora": False}, "use_dora"
    ),
    "base-weight": ({f"{Q}.base_layer.weight": torch.ones(16, 16)}, {}, "use_dora"),
}  # fmt: skip


@cases("", MERGED)
def _(place: Path, row: tuple[dict[str, Tensor], dict[str, Any], str]) -> str:
    """How merging an adapter alone ends, and the value of a key in the config that it writes."""
    added, config, key = row
    directory = adapter(place, factors() | {ROOT + path: t for path, t in added.items()}, **config)
    ended = outcome("merge", directory, "-o", place / "out", "--dtype", "float32")
    file = place / "out" / "adapter_config.json"
    return f"{ended}, {key} {json.loads(file.read_text())[key]}" if file.is_file() else ended


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


def reads(place: Path, **found: Any) -> str:
    """Whether merging.merge takes the adapter."""
    from merges import merge

    from loraprobe.adapters import read_adapter
    from loraprobe.errors import LoraprobeError

    try:
        merge([read_adapter(adapter(place, **found))])
    except LoraprobeError:
        return "refused"
    return "merged"


@case("pissa-merged")
def _(place: Path) -> str:
    return reads(place, init_lora_weights="pissa_niter_4")


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


TWO_LAYERS = factors(Q, Q.replace("0", "1")) | {f"{ROOT}{Q}.lora_magnitude_vector": torch.ones(16)}
SWIFT = {"lora_dtype": None, "lorap_lr_ratio": 16.0, "lorap_emb_lr": 1e-6, "swift_type": "LORA"}
CODED: dict[str, tuple[dict[str, Tensor] | None, dict[str, Any], str]] = {
    "magnitude-lost": (TWO_LAYERS, {"use_dora": True}, "missing-tensors"),
    "targets-nested": (None, {"target_modules": "(" * 3000 + ")" * 3000}, "targets-unreadable"),
    "targets-without-end": (
        factors("a" * 60), {"target_modules": "((a|aa)+)+c"}, "targets-unreadable"
    ),
    "initialisation-unknown": (None, {"init_lora_weights": "milora"}, "init-unknown"),
    "trainer-keys": (None, SWIFT, "trainer-config"),
    "rank-of-1e9": (None, {"r": 10**9}, "rank-contradicts-config"),
    "base-of-another-machine": (
        None, {"base_model_name_or_path": "/home/alice/secret/base"}, "base-is-a-path"
    ),
}  # fmt: skip


@cases("", CODED)
def _(place: Path, row: tuple[dict[str, Tensor] | None, dict[str, Any], str]) -> str:
    """How inspect ends, and whether it says a code of a finding."""
    tensors, config, code = row
    result = call("inspect", adapter(place, tensors, **config), "--json")
    end = ended(result)
    if end not in ("exit 0", "exit 1"):
        return end
    found = json.loads(result.stdout)["compatibility"]["issues"]
    return f"{end}, {code}" if code in {issue["code"] for issue in found} else end


def nested(place: Path) -> Path:
    """An adapter whose config is nested deeply."""
    file = adapter(place) / "adapter_config.json"
    file.write_text(file.read_text()[:-1] + ', "x": ' + "[" * 3000 + "]" * 3000 + "}")
    return file.parent


def pickled(place: Path, key: Any) -> Path:
    """An adapter in a pickle with a tensor under this key too."""
    return making.write_adapter(place / "a", factors() | {key: torch.ones(1)}, pickle=True)


DIGITS = f"model.layers.{'9' * 5000}.self_attn.q_proj"
MANY = [f"model.layers.{n}.self_attn.q_proj" for n in range(200)]
ODD: dict[str, Callable[[Path], Path]] = {
    "adapter-config-nested": nested,
    "layer-superscript": lambda p: adapter(p, factors("model.layers.².q_proj")),
    "layer-of-5000-digits": lambda p: adapter(p, factors(DIGITS), layers_to_transform=[0, 1]),
    "number-of-401-digits": lambda p: adapter(p, lora_alpha=10**400),
    "surrogate-in-config": lambda p: adapter(p, target_modules=["q_proj", "\ud800"]),
    "surrogate-in-pickle": lambda p: pickled(p, "x\ud800.weight"),
    "key-that-is-a-number": lambda p: pickled(p, 3),
    "many-layers": lambda p: adapter(
        p, factors(*MANY, inp=1), layers_to_transform=[*range(200_000)]
    ),
}


@cases("", ODD)
def _(place: Path, make: Callable[[Path], Path]) -> str:
    return outcome("inspect", make(place), "--json")


@case("hash-in-a-name")
def _(place: Path) -> str:
    base = tiny(place) / "base"
    (base / "blobs").mkdir()
    weights, blob = base / "model.safetensors", base / "blobs" / ("0" * 64)
    weights.rename(blob)
    weights.symlink_to(blob)
    document = json.loads(call("inspect", place / "a", "--base", base, "--json").stdout)
    found = document["base"]["sha256"]
    return {"0" * 64: "the name", file_hash(blob): "of the content"}.get(found, "neither")


@case("card-line-separator")
def _(place: Path) -> str:
    return str(declared_licence('---\nx: "a\u2028---\u2028b"\nlicense: cc-by-nc-4.0\n---\n'))


@case("card-almost-dashes")
def _(place: Path) -> str:
    text = "---\nlicense: mit\nx: |\n  a\n--- \nlicense: apache-2.0\n---\n"
    found = declared_licence(text)
    return "mit" if found == "mit" else "cc-by-nc-4.0" if found is None else str(found)


@case("header-key-twice")
def _(place: Path) -> str:
    file = adapter(place) / "adapter_model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    key = f"{ROOT}{Q}.lora_A.weight"
    entries = [f"{json.dumps(k)}:{json.dumps(v)}" for k, v in header.items()]
    start = header[key]["data_offsets"][0]
    first = {"dtype": "F32", "shape": [4, 16], "data_offsets": [start, start + 256]}
    entries.insert(0, f"{json.dumps(key)}:{json.dumps(first)}")
    made = ("{" + ",".join(entries) + "}").encode()
    file.write_bytes(struct.pack("<Q", len(made)) + made + data[8 + length :])
    return told("inspect", place / "a", names="twice")


@case("sparse-tensor")
def _(place: Path) -> str:
    tensors = factors()
    key = next(iter(tensors))
    tensors[key] = tensors[key].to_sparse()
    making.write_adapter(place / "a", tensors, pickle=True)
    return told("inspect", place / "a", names="sparse")


@case("self-link")
def _(place: Path) -> str:
    file = adapter(place) / "adapter_model.safetensors"
    file.unlink()
    file.symlink_to(file.name)
    return told("inspect", place / "a", names=file.name)


@case("parameter-and-lora")
def _(place: Path) -> str:
    making.saved_pair(place)
    options = {"target_modules": None, "target_parameters": ["q_proj.weight"]}
    making.write_adapter(place / "c", factors(), **options)
    found = call("merge", place / "b", place / "c", "-o", place / "o")
    if "report" in found.stderr:
        return "exit 2, please report this"
    return REFUSED if found.exit_code == 2 and "q_proj" in found.stderr else "exit 0"
