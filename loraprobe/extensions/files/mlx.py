"""Writes an adapter as mlx-lm saves it: `loraprobe convert --to mlx`.

mlx-lm has one rank and one scale for all modules. Its `keys` are the paths inside of a layer, and
`num_layers` counts the adapted layers from the last one, with -1 for all. mlx-lm 0.32 refuses a
file with tensors of other layers, and older ones drop them; a module that the file lacks stays
without effect. `loraprobe.adapters.mlx` says what the tensors are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from loraprobe.adapters import Adapter, check_output, public_name, read_adapter, staged_directory
from loraprobe.adapters.config import CONFIG
from loraprobe.adapters.mlx import MLX
from loraprobe.adapters.names import VOCABULARY, number_in, root
from loraprobe.adapters.saving import unshared_tensor
from loraprobe.base import Base
from loraprobe.errors import OutputError, UnsupportedAdapter


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
