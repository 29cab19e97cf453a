"""Loads a base model by transformers."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from loraprobe.base.memory import check_room
from loraprobe.checkpoint import first_line
from loraprobe.errors import BaseError, OutOfMemory
from loraprobe.formatting import listing
from loraprobe.memory import is_out_of_memory

if TYPE_CHECKING:
    from loraprobe.base.model import Base, DeviceMap, Quantize


def refuse_own_code(base: Base, trusted: bool) -> None:
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
    base: Base,
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
    files = base.weight_files  # raises an error for a missing file
    if device_map == "none":  # accelerate may also use the disk
        check_room(files, base.reference, dtype, str(device), quantize)
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
        if is_out_of_memory(error):
            raise OutOfMemory(
                f"The memory of {device} ran out while {base.reference} was loaded; use --dtype "
                "bfloat16, --quantize 4bit, a smaller base model, or another --device."
            ) from None
        if "mismatched_sizes" in str(error):  # the message refers to a report that is not shown
            raise BaseError(
                f"config.json of {base.reference} declares other sizes than the "
                "tensors of its weight files have; download the model again."
            ) from None
        raise BaseError(
            f"{base.reference} ({base.model_type}) does not load as a causal language model "
            f"({first_line(error)}); give a complete one of an architecture that transformers "
            "knows."
        ) from error
    if report.get("missing_keys"):
        lost = sorted(report["missing_keys"])
        raise BaseError(
            f"{base.reference} lacks {len(lost)} weights of {base.architecture}, {lost[0]} among "
            "them, which would be random; it is not a complete causal language model."
        )
    return model


def _placement(
    base: Base,
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
