"""Code that makes an example adapter for every pathology in docs/pathologies.md.

Each maker fills a directory as the case is met in the wild; `sound` is the healthy adapter that all
start from: rank 4 on q_proj and v_proj of two layers of width 16. Makers that differ in a setting,
in a change of the tensors or of the keys are rows of tables.
"""

import io
import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

CONFIG, WEIGHTS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
PREFIX = "base_model.model."
RANK, WIDTH, PARTNER_SEED = 4, 16, 77
SETTINGS: dict[str, Any] = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "bias": "none"} | {
    "base_model_name_or_path": "owner/base",
    "r": RANK,
    "lora_alpha": 8,
    "target_modules": ["q_proj", "v_proj"],
}

Maker = Callable[[Path], Any]
SPECIMENS: dict[str, Maker] = {}


def specimen(make: Maker) -> Maker:
    """Registers a maker under its name, with dashes for underscores."""
    SPECIMENS[make.__name__.replace("_", "-")] = make
    return make


def factors(paths: list[str], rank: int = RANK, width: int = WIDTH, seed: int = 0) -> dict:
    """Small Gaussian A [r, in] and B [out, r] for each path, under peft's keys."""
    draw = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for path in paths:
        tensors[f"{PREFIX}{path}.lora_A.weight"] = torch.randn(rank, width, generator=draw) * 0.1
        tensors[f"{PREFIX}{path}.lora_B.weight"] = torch.randn(width, rank, generator=draw) * 0.1
    return tensors


def paths(names: tuple[str, ...] = ("q_proj", "v_proj"), layers: int = 2) -> list[str]:
    return [f"model.layers.{i}.self_attn.{name}" for i in range(layers) for name in names]


def sound(place: Path, seed: int = 0, **changes: Any) -> dict[str, Tensor]:
    """The healthy adapter with the settings in `changes`; returns its tensors."""
    place.mkdir(parents=True, exist_ok=True)
    tensors = factors(paths(), seed=seed)
    write(place, tensors, **changes)
    return tensors


def write(place: Path, tensors: Mapping[str, Tensor] | None, **changes: Any) -> None:
    (place / CONFIG).write_text(json.dumps(SETTINGS | changes, ensure_ascii=False))
    if tensors is not None:
        save_file(dict(tensors), str(place / WEIGHTS))


def renamed(place: Path, rename: Callable[[str], str], **changes: Any) -> None:
    tensors = sound(place)
    write(place, {rename(key): tensor for key, tensor in tensors.items()}, **changes)


# Settings of the healthy adapter that are changed.
BASE, INIT = "base_model_name_or_path", "init_lora_weights"
CHANGES: dict[str, dict[str, Any]] = {
    "weights-beyond-the-targets": {"target_modules": ["q_proj"]},
    "targets-null": {"target_modules": None},
    "targets-empty": {"target_modules": []},
    "base-unnamed": {BASE: None},
    "base-of-another-system": {BASE: "C:\\Users\\me\\models\\base"},
    "base-in-another-script": {BASE: "/数据/模型/基座"},
    "another-base": {BASE: "owner/other"},
    "chat-model-of-the-base": {BASE: "owner/base-chat"},  # its name contains the other's
    "another-revision": {"revision": "v2"},
    "quantised-base": {BASE: "owner/base-bnb-4bit"},
    "rslora": {"use_rslora": True},
    "rank-contradicts-config": {"r": 8},
    "key-of-the-future": {"use_hyperbolic_geometry": True},
    "empty-key-of-the-future": {"hyperbolic_config": None},
    "type-of-the-future": {"peft_type": "HYPERLORA"},
    "dora-without-magnitudes": {"use_dora": True},
    "variant-alora": {"alora_invocation_tokens": [1, 2, 3]},
    "variant-kasa": {"kasa_config": {"enabled": True}},
    "variant-monteclora": {"monteclora_config": {"num_samples": 4}},
    "variant-bd-lora": {"use_bdlora": {"nblocks": 2}},
    "variant-qalora": {"use_qalora": True, "qalora_group_size": 16},
    "variant-velora": {"velora_config": {"rank": 2}},
    "variant-pissa": {INIT: "pissa"},
    "variant-olora": {INIT: "olora"},
    "variant-corda": {INIT: "corda"},
    "variant-layer-replication": {"layer_replication": [[0, 2], [1, 2]]},
    **{f"type-{kind.lower().replace('_', '-')}": {"peft_type": kind} for kind in ("IA3", "LOHA",
        "LOKR", "OFT", "VERA", "PROMPT_TUNING", "ADALORA")},
    "identical-to-its-partner": {"seed": PARTNER_SEED},
}  # fmt: skip
for _name, _changes in CHANGES.items():
    SPECIMENS[_name] = lambda place, changes=_changes: sound(place, **changes)


# Tensors: each is replaced by what the function gives for its key and itself.
TENSORS: dict[str, Callable[[str, Tensor], Tensor]] = {
    "b-of-several-hundred": lambda key, t: t * (400 / t.norm()) if "lora_B" in key else t,
    "b-all-zero": lambda key, t: t * 0 if "lora_B" in key else t,
    "nan": lambda key, t: t.index_fill(0, torch.tensor([1]), float("nan")),
    "infinity": lambda key, t: t.index_fill(1, torch.tensor([0]), float("inf")),
    "subnormal": lambda key, t: t * 1e-38 if "lora_B" in key else t,
    "integers": lambda key, t: (t * 100).to(torch.int8),
    "float8": lambda key, t: t.to(torch.float8_e4m3fn),
}


def _changed(place: Path, change: Callable[[str, Tensor], Tensor]) -> None:
    tensors = sound(place)
    write(place, {key: change(key, tensor).contiguous() for key, tensor in tensors.items()})


for _name, _change in TENSORS.items():
    SPECIMENS[_name] = lambda place, change=_change: _changed(place, change)


# Tensors that are added, and settings with them.
def _each(name: str, tensor: Tensor) -> dict[str, Tensor]:
    return {f"{PREFIX}{path}.{name}": tensor.clone() for path in paths()}


HEAD: dict[str, Any] = {"task_type": "SEQ_CLS", "modules_to_save": ["score"]}
ADDED: dict[str, tuple[dict[str, Tensor], dict[str, Any]]] = {
    "base-layer-inside": (_each("base_layer.weight", torch.eye(WIDTH)), {}),
    "dora": (_each("lora_magnitude_vector", torch.ones(WIDTH)), {"use_dora": True}),
    "lora-bias": (_each("lora_B.bias", torch.ones(WIDTH) * 0.1), {"lora_bias": True}),
    "head-of-another-size": ({f"{PREFIX}score.weight": torch.ones(3, WIDTH)}, HEAD),
    "head-of-both": ({f"{PREFIX}score.weight": torch.full((2, WIDTH), 0.5)}, HEAD),
    "vocabulary-resized": (  # two more tokens than the partner's
        {f"{PREFIX}model.embed_tokens.weight": torch.ones(42, WIDTH)},
        {"modules_to_save": ["embed_tokens"]},
    ),
}
for _name, (_more, _settings) in ADDED.items():
    SPECIMENS[_name] = lambda place, more=_more, settings=_settings: write(
        place, sound(place) | more, **settings
    )


# Keys.
def _kohya(key: str) -> str:
    path, _, factor = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
    side = "lora_down" if factor == "lora_A" else "lora_up"
    return f"lora_te_{path.replace('.', '_')}.{side}.weight"


def _diffusers(key: str) -> str:
    path, _, factor = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
    return f"unet.{path}.lora.{'down' if factor == 'lora_A' else 'up'}.weight"


KEYS: dict[str, Callable[[str], str]] = {
    "doubled-prefix": lambda key: PREFIX + key,
    "missing-prefix": lambda key: key.removeprefix(PREFIX),
    "kohya": _kohya,
    "diffusers": _diffusers,
}
for _name, _rename in KEYS.items():
    SPECIMENS[_name] = lambda place, rename=_rename: renamed(place, rename)


# Files that are replaced by bytes.
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'ab' * 32}\nsize 1048576\n"
REPLACED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "lfs-pointer": (WEIGHTS, lambda data: POINTER.encode()),
    "empty-weights": (WEIGHTS, lambda data: b""),
    "truncated": (WEIGHTS, lambda data: data[:-100]),
    "empty-config": (CONFIG, lambda data: b""),
    "config-is-a-list": (CONFIG, lambda data: b"[1, 2, 3]"),
    "missing-alpha": (CONFIG, lambda data: data.replace(b'"lora_alpha": 8, ', b"")),
}


def _replaced(place: Path, file: str, change: Callable[[bytes], bytes]) -> None:
    sound(place)
    (place / file).write_bytes(change((place / file).read_bytes()))


for _name, _row in REPLACED.items():
    SPECIMENS[_name] = lambda place, row=_row: _replaced(place, *row)


# Pickles: a change of each tensor, and whether the file of safetensors stays beside it.
def _expanded(key: str, t: Tensor) -> Tensor:
    """One number, declared as a matrix of 2^60 by strides of zero."""
    shape = (RANK, 1 << 60) if "lora_A" in key else (1 << 60, RANK)
    return torch.ones(1).as_strided(shape, (0, 0))


PICKLED: dict[str, tuple[Callable[[str, Tensor], Tensor], bool]] = {
    "two-files-that-disagree": (lambda key, t: 2 * t, True),
    "two-files-that-agree": (lambda key, t: t, True),
    "complex-numbers": (lambda key, t: t.to(torch.complex64), False),
    "expanded-to-2-to-60": (_expanded, False),
}


def _pickled(place: Path, change: Callable[[str, Tensor], Tensor], beside: bool) -> None:
    tensors = sound(place)
    torch.save({key: change(key, tensor) for key, tensor in tensors.items()}, place / PICKLE)
    if not beside:
        (place / WEIGHTS).unlink()


for _name, _row in PICKLED.items():
    SPECIMENS[_name] = lambda place, row=_row: _pickled(place, *row)


# Tensors of other modules, ranks and widths, and settings with them.
def _rank_pattern() -> dict[str, Tensor]:
    """Half the rank in one kind of module."""
    values = [path for path in paths() if "v_proj" in path]
    return factors(paths()) | factors(values, rank=2)


def _fused() -> dict[str, Tensor]:
    """One LoRA on qkv_proj, where the partner has one on each of q, k and v."""
    return {k: torch.cat([t] * 3) if "lora_B" in k else t for k, t in factors(FUSED).items()}


def _many() -> dict[str, Tensor]:
    return factors([f"model.layers.{i}.x" for i in range(100_000)], rank=1, width=2)


FUSED = paths(("qkv_proj",))
LOST = [path for path in paths() if path != "model.layers.1.self_attn.v_proj"]
QKV = {"target_modules": ["q_proj", "k_proj", "v_proj"]}
WRITTEN: dict[str, tuple[Callable[[], dict[str, Tensor]], dict[str, Any]]] = {
    "no-tensors": (dict, {}),
    "weights-for-12-of-36-modules": (lambda: factors(paths(("q_proj",), 12)), QKV),
    "one-layer-lost": (lambda: factors(LOST), {}),
    "rank-pattern": (_rank_pattern,
        {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 16}}),
    "rank-that-servers-refuse": (lambda: factors(paths(), rank=96, width=128), {"r": 96}),
    "fused-projections": (_fused, {"target_modules": ["qkv_proj"]}),
    "hundred-thousand-modules": (_many, {"r": 1, "lora_alpha": 1, "target_modules": ["x"]}),
}  # fmt: skip


def _written(place: Path, tensors: Callable[[], dict[str, Tensor]], changes: dict) -> None:
    place.mkdir(parents=True)
    write(place, tensors(), **changes)


for _name, _row in WRITTEN.items():
    SPECIMENS[_name] = lambda place, row=_row: _written(place, *row)


# Files.
@specimen
def state_dict_without_config(place: Path) -> None:
    place.mkdir(parents=True)
    t5 = [f"encoder.block.{i}.layer.0.SelfAttention.q" for i in range(2)]
    torch.save(factors(t5), place / PICKLE)


@specimen
def pickle_from_cuda(place: Path) -> None:
    """A file as torch.save writes it on a GPU: every storage has the device cuda:0."""
    tensors = sound(place)
    (place / WEIGHTS).unlink()
    plain, moved = io.BytesIO(), io.BytesIO()
    torch.save(tensors, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(moved, "w") as target:
        for name in source.namelist():
            data = source.read(name)
            if name.endswith("data.pkl"):
                cpu, cuda = (b"X" + struct.pack("<I", len(d)) + d for d in (b"cpu", b"cuda:0"))
                assert cpu in data
                data = data.replace(cpu, cuda)
            target.writestr(name, data)
    (place / PICKLE).write_bytes(moved.getvalue())


@specimen
def kohya_without_config(place: Path) -> None:
    renamed(place, _kohya)
    (place / CONFIG).unlink()


@specimen
def experts_of_older_peft(place: Path) -> None:
    """Square experts, of which no shape tells whether inputs and outputs are exchanged."""
    sound(place)
    experts = factors(["model.layers.0.mlp.experts"], rank=2 * RANK, seed=3)
    write(
        place, factors(paths()) | experts, target_parameters=["gate_up_proj"], peft_version="0.18.1"
    )


@specimen
def shape_of_2_to_60(place: Path) -> None:
    """The header declares more bytes than any file can hold."""
    sound(place)
    header = {
        key: {"dtype": "F32", "shape": [1 << 60, 1], "data_offsets": [0, 16]}
        for key in factors(paths())
    }
    text = json.dumps(header).encode()
    (place / WEIGHTS).write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 16)


def partner(place: Path, case: str) -> Path:
    """The healthy partner of a specimen in a merge; it has the same extra parts."""
    tensors = sound(place, seed=PARTNER_SEED)
    if case == "rank-that-servers-refuse":
        write(place, factors(paths(), width=128, seed=PARTNER_SEED))
    if case == "another-revision":
        write(place, tensors, revision="v1")
    if case == "fused-projections":
        names = ("q_proj", "k_proj", "v_proj")
        write(place, factors(paths(names), seed=PARTNER_SEED), target_modules=list(names))
    if case == "vocabulary-resized":
        table = {f"{PREFIX}model.embed_tokens.weight": torch.ones(40, WIDTH)}
        write(place, tensors | table, modules_to_save=["embed_tokens"])
    if case in ("head-of-another-size", "head-of-both"):
        head = {f"{PREFIX}score.weight": torch.ones(2, WIDTH)}
        write(place, tensors | head, **HEAD)
    return place
