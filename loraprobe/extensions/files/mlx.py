"""Adapters of mlx-lm, read as the PEFT file that computes the same, and written (`--to mlx`).

mlx-lm saves `adapters.safetensors` beside an `adapter_config.json` of its own, with

    X.lora_a [in, r]   X.lora_b [r, out]     of a linear layer or an embedding: A^T and B^T
    X.lora_a [E, r, in]   X.lora_b [E, out, r]     of the E experts of a layer
    X.m [out]     the magnitude of DoRA, which it computes as peft does

and `lora_parameters` with `rank` and `scale`. The scale is the factor of B A itself, so that
lora_alpha = scale * rank. Modules have the names of transformers, but for experts: `switch_mlp`
stands for `experts`, with one matrix for all. Sources: tuner/lora.py, dora.py and utils.py of
ml-explore/mlx-lm at 0.32.

mlx-lm has one rank and one scale for all modules. Its `keys` are the paths inside of a layer, and
`num_layers` counts the adapted layers from the last one, with -1 for all. mlx-lm 0.32 refuses a
file with tensors of other layers, and older ones drop them; a module that the file lacks stays
without effect.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraprobe.adapters import Adapter, check_output, public_name, read_adapter, staged_directory
from loraprobe.adapters.config import CONFIG, LARGEST, AdapterConfig, judge_config
from loraprobe.adapters.names import VOCABULARY, number_in, root
from loraprobe.adapters.saving import unshared_tensor
from loraprobe.base import Base
from loraprobe.checkpoint import TensorFile, open_weights
from loraprobe.errors import AdapterError, OutputError, UnsupportedAdapter
from loraprobe.extensions.files import MLX
from loraprobe.untrusted import MODULES, check_link, read_json

HEADS = frozenset("lm_head embed_out output_layer".split())  # of VOCABULARY, the linear layers
KEY = re.compile(r"(?P<path>.+)\.(?P<what>lora_a|lora_b|m)")
SUFFIXES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight", "m": "lora_magnitude_vector"}
TABLES = {"lora_a": "lora_embedding_A", "lora_b": "lora_embedding_B"}


# ---- reading -------------------------------------------------------------------------------------


def read_mlx(directory: Path, prefix: str) -> tuple[AdapterConfig, TensorFile]:
    """The config and the tensors of an adapter of mlx-lm as peft would have them.

    prefix: of peft's keys. Raises AdapterError for a file that cannot be read or lacks the scale,
    UnsupportedAdapter for one of whole weights.
    """
    where = directory / CONFIG
    raw = read_json(where, str(directory), AdapterError)
    if raw.get("fine_tune_type") == "full":
        raise UnsupportedAdapter(
            f"{directory} holds whole weights, which mlx-lm trained with fine_tune_type full, and "
            "no adapter; write the model with mlx_lm.fuse and give it as --base."
        )
    given = raw.get("lora_parameters")
    given = given if isinstance(given, dict) else {}
    rank: Any = given.get("rank")
    scale: Any = given.get("scale")
    alpha: Any = given.get("alpha")
    if type(rank) is not int or type(scale) not in (int, float) or not 0 < rank <= LARGEST:
        raise AdapterError(
            f"{where} lacks lora_parameters with a rank and a scale, without which the size of "
            "what it adds is unknown; set both as mlx-lm trained it."
        )
    if alpha is not None:
        old = float(scale) * float(alpha) / rank if type(alpha) in (int, float) else "another one"
        raise AdapterError(
            f"{where} has an alpha beside the scale {scale}: mlx-lm before June 2024 multiplied "
            f"both, so that the scale is {old}, and newer ones ignore alpha. Remove alpha, and set "
            "scale to the one that it was trained with."
        )
    check_link(directory / MLX, str(directory), AdapterError)
    file = AsPeft(open_weights(directory / MLX, str(directory), AdapterError), prefix)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": raw.get("model"),
        "r": rank,
        "lora_alpha": scale * rank,
        "use_dora": raw.get("fine_tune_type") == "dora",
        "target_modules": sorted(file.paths) or None,
    }
    if file.has_tables:  # mlx-lm applies it in a head that shares the embedding too
        config["ensure_weight_tying"] = True
    return judge_config(config, str(where)), file


class AsPeft(TensorFile):
    """The tensors of a file of mlx-lm under peft's keys and in peft's shapes."""

    def __init__(self, file: TensorFile, prefix: str) -> None:
        self.path, self.file, self.metadata = file.path, file, file.metadata
        self.shapes, self.dtypes = {}, {}
        self.paths = set[str]()
        self.has_tables = False
        self._reads: dict[str, Callable[[], Tensor]] = {}
        for key, shape in file.shapes.items():
            match = KEY.fullmatch(key)
            path, what = (match["path"], match["what"]) if match else (key, "")
            if len(shape) == 3 and what in ("lora_a", "lora_b"):
                parent, _, leaf = path.rpartition(".")
                parent = re.sub(r"(^|\.)switch_mlp$", r"\1experts", parent)
                if shape[0] > MODULES:
                    raise AdapterError(f"{file.path} has {shape[0]:,} experts in {path}.")
                for number in range(shape[0]):
                    one = f"{parent}.{number}.{leaf}"
                    read = functools.partial(_expert, file, key, number)
                    self._add(f"{prefix}{one}.{SUFFIXES[what]}", key, shape[1:], read)
                    self.paths.add(one)
            elif len(shape) == 2 and what in ("lora_a", "lora_b"):
                name = path.rpartition(".")[2]
                is_table = name in VOCABULARY - HEADS
                self.has_tables |= is_table
                suffix = TABLES[what] if is_table else SUFFIXES[what]
                read = functools.partial(_transposed, file, key)
                self._add(f"{prefix}{path}.{suffix}", key, shape[::-1], read)
                self.paths.add(path)
            else:
                suffix = f".{SUFFIXES[what]}" if what == "m" else f".{what}" if what else ""
                read = functools.partial(file.read, key)
                self._add(f"{prefix}{path}{suffix}", key, shape, read)

    def _add(self, name: str, key: str, shape: tuple[int, ...], read: Callable[[], Tensor]) -> None:
        self.shapes[name], self.dtypes[name] = shape, self.file.dtypes[key]
        self._reads[name] = read

    def read(self, key: str) -> Tensor:
        return self._reads[key]()


def _transposed(file: TensorFile, key: str) -> Tensor:
    return file.read(key).mT.contiguous()


def _expert(file: TensorFile, key: str, number: int) -> Tensor:
    return file.read(key)[number].contiguous()


# ---- writing -------------------------------------------------------------------------------------


def mlx_config(adapter: Adapter, base: Base | None) -> dict[str, Any]:
    """The adapter_config.json of mlx-lm for an adapter of one rank and one scaling.

    base: tells the number of layers, without which all are adapted, and whether the head has a
    weight of its own. Raises UnsupportedAdapter for what mlx-lm has no place for.
    """
    _check(adapter, base)
    keys: dict[str, None] = {}
    layers: list[int] = []
    for path in adapter.layout:
        start = root(path)
        number, _, inside = path.removeprefix(f"{start}.").partition(".")
        layer = number_in(number) if start != path else None
        keys[path if layer is None else inside] = None
        layers += [] if layer is None else [layer]
    config = {} if base is None else base.config.get("text_config") or base.config
    count = int(config.get("num_hidden_layers") or 0)
    info = next(iter(adapter.layout.values()))
    return {
        "model": public_name(adapter.base_model),
        "fine_tune_type": "dora" if adapter.magnitudes else "lora",
        "num_layers": count - min(layers, default=count) if count else -1,
        "lora_parameters": {
            "rank": info.rank,
            "scale": info.scaling,
            "dropout": 0.0,
            "keys": sorted(keys),
        },
    }


def _check(adapter: Adapter, base: Base | None) -> None:
    """Raises UnsupportedAdapter for an adapter that mlx-lm cannot hold."""
    tied = base is None or bool(base.config.get("tie_word_embeddings", True))
    lost = {
        "whole weights or biases": adapter.whole,
        "biases of B": adapter.offsets,
        "trained rows of tokens": adapter.token_rows,
        "layers that are no linear ones": [
            path for path, i in adapter.layout.items() if i.kind not in ("linear", "embedding")
        ],
        "embeddings or heads, unless --base shows that they share no weight": [
            path for path in adapter.layout if tied and path.rpartition(".")[2] in VOCABULARY
        ],
    }
    for what, held in lost.items():
        if held:
            raise UnsupportedAdapter(
                f"{adapter.name} changes {next(iter(held))}, and a file of mlx-lm has no place for "
                f"{what}; write it for peft, without --to."
            )
    if adapter.magnitudes and set(adapter.magnitudes) != set(adapter.layout):
        raise UnsupportedAdapter(
            f"{adapter.name} uses DoRA in some modules only, which a file of mlx-lm cannot say; "
            "write it for peft, without --to."
        )


def save_mlx(
    adapter: Adapter, config: Mapping[str, Any], directory: Path, overwrite: bool, card: str
) -> None:
    """Writes a directory of mlx-lm and reads it back. Raises OutputError."""
    from safetensors.torch import save_file

    check_output(directory, overwrite)
    seen: set[int] = set()
    tensors = {}
    for path, update in adapter.modules.items():
        tensors[f"{path}.lora_a"] = unshared_tensor(update.A.mT.detach(), seen)
        tensors[f"{path}.lora_b"] = unshared_tensor(update.B.mT.detach(), seen)
    for path, magnitude in adapter.magnitudes.items():
        tensors[f"{path}.m"] = unshared_tensor(magnitude.detach(), seen)
    with staged_directory(directory, overwrite) as staging:
        save_file(tensors, str(staging / MLX), metadata={"format": "mlx"})
        text = json.dumps(config, indent=4, sort_keys=True, ensure_ascii=False)
        (staging / CONFIG).write_text(text + "\n", encoding="utf-8")
        read = read_adapter(staging, adapter.name)
        places = read.layout.keys(), read.magnitudes.keys()
        same = places == (adapter.layout.keys(), adapter.magnitudes.keys()) and all(
            torch.equal(update.A, adapter.modules[path].A)
            and torch.equal(update.B, adapter.modules[path].B)
            and abs(update.scaling - adapter.layout[path].scaling) <= 1e-9 * abs(update.scaling)
            for path, update in read.modules.items()
        )
        magnitudes = adapter.magnitudes.items()
        if not same or not all(torch.equal(read.magnitudes[path], m) for path, m in magnitudes):
            raise OutputError(
                f"What was written to {directory} is not what was meant when it is read back; "
                "check the disk and run again."
            )
        (staging / "README.md").write_text(card, encoding="utf-8")
