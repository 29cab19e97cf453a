"""What a file holds beside low-rank factors and what can be used of it.

DoRA magnitudes, whole modules and trained biases, biases of lora_B.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from loraprobe.adapter.tensors import TensorFile
from loraprobe.adapter.types import Extra, Tensors


class Beside(NamedTuple):
    """As `Adapter` has them; each tensor is read when asked for."""

    magnitudes: Tensors
    whole: Tensors
    offsets: Tensors


def beside(file: TensorFile, extras: Sequence[Extra]) -> Beside:
    """Sorts a file's extras by what they do; those of other kinds are left out."""
    magnitudes, whole, offsets = {}, {}, {}
    for extra in extras:
        if extra.module is None:
            continue
        if extra.kind == "dora_magnitude":
            magnitudes[extra.module] = extra.key
        elif extra.kind == "lora_bias":
            offsets[extra.module] = extra.key
        elif extra.kind in ("modules_to_save", "bias"):
            whole[f"{extra.module}.{extra.key.rpartition('.')[2]}"] = extra.key
    return Beside(
        _read(file, magnitudes, flat=True), _read(file, whole), _read(file, offsets, flat=True)
    )


def _read(file: TensorFile, keys: Mapping[str, str], flat: bool = False) -> Tensors:
    """flat: [out], where peft stores the magnitudes of embeddings and convolutions with ones."""

    def read(name: str) -> object:
        tensor = file.read(keys[name])
        return tensor.reshape(-1) if flat else tensor

    return Tensors(keys, read)  # type: ignore[arg-type]
