"""Checks from the headers of its files whether a base model fits into memory."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import torch

from loraprobe import memory
from loraprobe.checkpoint import read_header

# Memory for activations and the key-value cache, as a share of the weights. Batches shrink to fit.
OVERHEAD = 0.1
# Estimated bytes per weight if bitsandbytes quantises while loading, except embeddings and norms.
BYTES = {"8bit": 1.2, "4bit": 0.7}
PACKED = {"U8", "I8", "F8_E4M3", "F8_E5M2"}  # quantised weights are loaded as stored


def weight_bytes(files: Iterable[Path], reference: str, dtype: torch.dtype) -> int:
    """The bytes of all tensors of weight files loaded in a dtype, from the headers."""
    total = 0
    for file in files:
        for stored, shape in read_header(file, reference).values():
            total += math.prod(shape) * (1 if stored in PACKED else dtype.itemsize)
    return total


def check_room(
    files: Iterable[Path],
    reference: str,
    dtype: torch.dtype,
    device: str,
    quantize: str = "none",
) -> None:
    """Raises OutOfMemory with the needed bytes and with options that need less."""
    whole = (1 + OVERHEAD) * weight_bytes(files, reference, dtype)
    sizes = {
        "none": whole,
        "8bit": whole * BYTES["8bit"] / dtype.itemsize,
        "4bit": whole * BYTES["4bit"] / dtype.itemsize,
    }
    less = []
    if quantize == "none" and dtype.itemsize > 2:
        less.append(f"--dtype bfloat16 needs {memory.gib(whole * 2 / dtype.itemsize)}")
    less += [
        f"--quantize {bits} about {memory.gib(sizes[bits])}"
        for bits in ("8bit", "4bit")
        if sizes[bits] < sizes[quantize]
    ]
    kind = str(dtype).removeprefix("torch.") if quantize == "none" else quantize
    instead = ", ".join(less) or "take a smaller base"
    memory.require(int(sizes[quantize]), f"{reference} in {kind}", instead, device)
