"""Whether a base model fits into memory, from the headers of its files, before it is loaded."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch

from loraprobe import memory
from loraprobe.checkpoint import read_header

# What a forward pass and the cache of keys and values want beside the weights, as a share of them:
# batches shrink to what is left, down to one.
BESIDE = 0.1
PACKED = {"U8", "I8", "F8_E4M3", "F8_E5M2"}  # of quantised files: loaded as they are stored


def weight_bytes(files: Iterable[Path], reference: str, dtype: torch.dtype) -> int:
    """Bytes of all tensors of weight files, loaded in a dtype; nothing but headers is read."""
    total = 0
    for file in files:
        for stored, shape in read_header(file, reference).values():
            total += math.prod(shape) * (1 if stored in PACKED else dtype.itemsize)
    return total


def check_room(files: Iterable[Path], reference: str, dtype: torch.dtype, device: str) -> None:
    """Raises OutOfMemory with the number, and with what would fit."""
    files = tuple(files)
    needed = (1 + BESIDE) * weight_bytes(files, reference, dtype)
    half = needed * 2 / dtype.itemsize
    quarter = needed * 0.5 / dtype.itemsize
    halved = f"--dtype bfloat16 needs {memory.gib(half)}, " if dtype.itemsize > 2 else ""
    memory.require(
        int(needed),
        f"{reference} in {str(dtype).removeprefix('torch.')}",
        f"{halved}--quantize 4bit about {memory.gib(quarter)}",
        device,
    )
