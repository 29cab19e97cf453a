"""The files of an adapter: its directory, its weights, and what other ways of training leave there.

peft writes `adapter_config.json` beside `adapter_model.safetensors`; older versions wrote a pickle.
trainings.toml lists ways of training whose published code saves something else.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from loraprobe.adapters.config import CONFIG
from loraprobe.checkpoint import TensorFile, open_weights
from loraprobe.errors import AdapterError
from loraprobe.untrusted import check_link, read_json
from loraprobe.wiring import extensions

SAFETENSORS, PICKLE = "adapter_model.safetensors", "adapter_model.bin"


def find_directory(path: Path) -> Path:
    """The directory itself, or its only sub-folder with an adapter (peft's named adapters).

    Raises AdapterError if there is none, or if several sub-folders hold adapters.
    """
    if not path.is_dir():
        raise AdapterError(f"There is no directory {path}; check the path.")
    if (path / CONFIG).is_file():
        return path
    inner = sorted(p.parent for p in path.glob(f"*/{CONFIG}"))
    if len(inner) > 1:
        names = ", ".join(map(str, inner))
        raise AdapterError(f"{path} holds several adapters; name one of {names}.")
    if inner:
        return inner[0]
    if (path / "config.json").is_file():
        config = read_json(path / "config.json", str(path), AdapterError)
        if bits := quantised_by_mlx(config):
            raise AdapterError(
                f"{path} is a whole model of MLX in {bits}, not an adapter: one that was fused "
                "into it cannot be taken out again, because its weights were rounded afterwards; "
                "give the directory that mlx_lm.lora wrote."
            )
        raise AdapterError(f"{path} is a whole model, not an adapter; give it as --base.")
    if (path / "adapters.npz").is_file():
        raise AdapterError(
            f"{path} holds adapters.npz, which mlx-lm wrote before March 2024, without the scale; "
            "train it again, or save it as adapters.safetensors with an adapter_config.json."
        )
    if training := trained_by("files", [file.name for file in path.iterdir()]):
        raise _not_peft(path, training)
    for file in sorted(path.glob("*.safetensors")):
        if training := trained_by("keys", open_weights(file, str(path), AdapterError).shapes):
            raise _not_peft(path, training)
    raise AdapterError(
        f"{path} has no {CONFIG}, so it is no PEFT adapter; "
        "give the directory that save_pretrained wrote."
    )


def quantised_by_mlx(config: Mapping[str, Any]) -> str | None:
    """How the weights of a model of MLX are quantised, by its config.json; None if they are not."""
    given = config.get("quantization")
    if not isinstance(given, dict) or "bits" not in given:
        return None
    return f"{given['bits']!s:.20} bits"


@functools.cache
def trainings() -> list[dict[str, str]]:
    """Ways of training a LoRA whose published code saves other things than a PEFT file.

    trainings.toml says what each is, whether it is a composition, and what its code saves.
    """
    table = Path(__file__).with_name("trainings.toml").read_text(encoding="utf-8")
    rows: list[dict[str, str]] = tomllib.loads(table)["training"]
    return rows


def trained_by(what: Literal["files", "keys"], names: Iterable[str]) -> dict[str, str] | None:
    """The way of training whose code writes files, or tensors, of such names."""
    given = list(names)
    for training in trainings():
        if what in training and any(re.fullmatch(training[what], name) for name in given):
            return training
    return None


def _not_peft(path: Path, training: Mapping[str, str]) -> AdapterError:
    return AdapterError(
        f"{path} holds {training['saved']}, and no PEFT adapter; {training['cure']}."
    )


def foreign_weights() -> dict[str, tuple[str, str]]:
    """Files of weights that other libraries write -> what reads them, and the code of the finding,
    as extensions say."""
    return {name: row for one in extensions() for name, row in one.foreign_weights.items()}


def open_tensors(directory: Path) -> TensorFile:
    """Opens the weights of an adapter, safetensors first. Raises AdapterError if there are none."""
    for name in (SAFETENSORS, PICKLE):
        check_link(directory / name, str(directory), AdapterError)
    for name in (SAFETENSORS, PICKLE):
        if (directory / name).is_file():
            return open_weights(directory / name, str(directory), AdapterError)
    if any(directory.glob("adapter_model-*-of-*.safetensors")):
        raise AdapterError(
            f"{directory} holds its weights in shards, which peft does not load; save them in one "
            f"file, {SAFETENSORS}."
        )
    raise AdapterError(
        f"{directory} has an {CONFIG} but neither {SAFETENSORS} nor {PICKLE}; "
        "give the directory that save_pretrained wrote."
    )


def disagreement(directory: Path) -> str | None:
    """The difference between the safetensors file and the pickle of a directory; None if equal.

    peft and loraprobe read the safetensors file, but older tools read the pickle.
    """
    if not ((directory / SAFETENSORS).is_file() and (directory / PICKLE).is_file()):
        return None
    ours = open_tensors(directory)
    try:
        theirs = open_weights(directory / PICKLE, str(directory), AdapterError)
    except AdapterError:
        return f"{PICKLE} cannot be read"
    if ours.shapes.keys() != theirs.shapes.keys():
        return f"{sorted(ours.shapes.keys() ^ theirs.shapes.keys())[0]} is in one of them only"
    for key in ours.shapes:
        one, other = ours.read(key), theirs.read(key)
        if one.shape != other.shape or not torch.equal(one.to(other.dtype), other):
            return f"{key} differs"
    return None
