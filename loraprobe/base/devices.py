"""Parses --device and --dtype."""

from __future__ import annotations

import re

import torch

from loraprobe.errors import UsageError


def pick_device(text: str) -> torch.device:
    """The device for `--device auto|cpu|cuda[:n]|mps`. Raises UsageError if it is absent."""
    if text == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", text):
        raise UsageError(f"--device must be auto, cpu, cuda, cuda:N or mps, not {text!r}.")
    device = torch.device(text)
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--device {text}: torch sees no CUDA device here; use --device cpu.")
    if (device.index or 0) >= count:
        raise UsageError(f"--device {text}: there are only {count} CUDA devices.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: torch sees no Metal device here; use --device cpu.")
    return device


def pick_dtype(text: str, device: torch.device | str = "cpu") -> torch.dtype:
    """The dtype for `--dtype auto|float32|bfloat16|float16`, or fp32, bf16, fp16 for short.

    auto is float32 on the CPU and Metal; on CUDA it is bfloat16 if the card supports it, else
    float16. Raises UsageError for other names.
    """
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if text == "auto":
        if torch.device(device).type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    known = named | {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    if text not in known:
        raise UsageError(f"--dtype must be auto, {', '.join(named)}, not {text!r}.")
    return known[text]
