"""Loads a base model by transformers, if it fits into memory."""

from __future__ import annotations

import math
from importlib.util import find_spec
from typing import Any, Literal

import torch

from loraprobe import memory
from loraprobe.base.files import BaseFiles
from loraprobe.checkpoint import first_line
from loraprobe.errors import BaseError, LoraprobeError, OutOfMemory
from loraprobe.formatting import listing

Quantize = Literal["none", "4bit", "8bit"]
DeviceMap = Literal["none", "auto"]

# Memory for activations and the key-value cache, as a share of the weights. Batches shrink to fit.
OVERHEAD = 0.1
# Estimated bytes per weight if bitsandbytes quantises while loading, except embeddings and norms.
BYTES = {"8bit": 1.2, "4bit": 0.7}
PACKED = {"U8", "I8", "F8_E4M3", "F8_E5M2"}  # quantised weights are loaded as stored


def refuse_own_code(base: BaseFiles, trusted: bool) -> None:
    """Raises BaseError for a base that needs code of its repository, unless `trusted`."""
    if trusted or not base.config.get("auto_map"):
        return
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if base.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise BaseError(
            f"{base.reference} needs code of its own repository to run; if you trust it, pass "
            "--trust-remote-code."
        )


def load_model(
    base: BaseFiles,
    device: str | torch.device,
    dtype: torch.dtype,
    trusted: bool,
    quantize: Quantize,
    device_map: DeviceMap,
) -> Any:
    """The causal language model, on its device or devices.

    Raises BaseError if it cannot be loaded or is incomplete, OutOfMemory if it does not fit.
    """
    from transformers import AutoModelForCausalLM

    placement = _placement(base, device, dtype, quantize, device_map)
    if device_map == "none":  # accelerate may also use the disk
        _check_room(base, dtype, str(device), quantize)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(base.path),
            dtype=dtype,
            trust_remote_code=trusted,
            local_files_only=True,
            output_loading_info=True,
            **placement,
        )
        model, report = loaded
        model = model if placement else model.to(device)
    except Exception as error:
        raise _not_loaded(base, device, error) from error
    if report.get("missing_keys"):
        lost = sorted(report["missing_keys"])
        raise BaseError(
            f"{base.reference} lacks {len(lost)} weights of {base.architecture}, {lost[0]} among "
            "them, which would be random; it is not a complete causal language model."
        )
    return model


def _not_loaded(base: BaseFiles, device: str | torch.device, error: Exception) -> LoraprobeError:
    """The error to raise when transformers does not load a model."""
    if memory.is_out_of_memory(error):
        return OutOfMemory(
            f"The memory of {device} ran out while {base.reference} was loaded; use --dtype "
            "bfloat16, --quantize 4bit, a smaller base model, or another --device."
        )
    if "mismatched_sizes" in str(error):  # the message refers to a report that is not shown
        return BaseError(
            f"config.json of {base.reference} declares other sizes than the "
            "tensors of its weight files have; download the model again."
        )
    return BaseError(
        f"{base.reference} ({base.model_type}) does not load as a causal language model "
        f"({first_line(error)}); give a complete one of an architecture that transformers "
        "knows."
    )


def _placement(
    base: BaseFiles,
    device: str | torch.device,
    dtype: torch.dtype,
    quantize: Quantize,
    device_map: DeviceMap,
) -> dict[str, Any]:
    """Arguments of from_pretrained for placement and quantisation; {} for a plain device."""
    chosen: dict[str, Any] = {}
    if device_map == "auto":
        _need(["accelerate"], "--device-map auto", "give --device instead")
        chosen["device_map"] = "auto"
    if quantize == "none":
        stored = bool(base.quantization) and find_spec("accelerate") is not None
        return {"device_map": {"": str(device)}} | chosen if stored else chosen
    if base.quantization:
        raise BaseError(f"{base.reference} is stored quantised already; leave --quantize out.")
    _need(["bitsandbytes", "accelerate"], f"--quantize {quantize}", "leave it out")
    from transformers import BitsAndBytesConfig

    four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    chosen["quantization_config"] = (
        BitsAndBytesConfig(load_in_4bit=True, **four)
        if quantize == "4bit"
        else BitsAndBytesConfig(load_in_8bit=True)
    )
    return {"device_map": {"": str(device)}} | chosen


def _need(packages: list[str], option: str, otherwise: str) -> None:
    """Raises BaseError if a package is not installed."""
    lost = [name for name in packages if find_spec(name) is None]
    if lost:
        raise BaseError(
            f"{option} needs {listing(lost)}, which {'is' if len(lost) == 1 else 'are'}"
            f" not installed: pip install {' '.join(lost)}, or {otherwise}."
        )


def weight_bytes(base: BaseFiles, dtype: torch.dtype) -> int:
    """The bytes of all tensors of the weight files loaded in a dtype, from the headers."""
    return sum(
        math.prod(stored.shape) * (1 if stored.dtype in PACKED else dtype.itemsize)
        for stored in base.stored.values()
    )


def _check_room(base: BaseFiles, dtype: torch.dtype, device: str, quantize: Quantize) -> None:
    """Raises OutOfMemory with the needed bytes and with options that need less."""
    whole = (1 + OVERHEAD) * weight_bytes(base, dtype)
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
    memory.require(int(sizes[quantize]), f"{base.reference} in {kind}", instead, device)
