"""Loads a base model and its tokenizer: on a device or several, quantised, or in floating point."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch

from loraprobe import memory
from loraprobe.base.declared import check_tokenizer
from loraprobe.base.model import Base
from loraprobe.base.quiet import quiet, silenced
from loraprobe.errors import BaseError, OutOfMemory, UsageError
from loraprobe.formatting import listing, size
from loraprobe.untrusted import check_link, error_line

# Memory for activations and the key-value cache, as a share of the weights. Batches shrink to fit.
OVERHEAD = 0.1
# Estimated bytes per weight if bitsandbytes quantises while loading, except embeddings and norms.
BYTES = {"8bit": 1.2, "4bit": 0.7}
# Quantised weights are loaded as stored.
PACKED = {torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float8_e5m2}

Quantize = Literal["none", "4bit", "8bit"]
DeviceMap = Literal["none", "auto"]


@dataclass(frozen=True, eq=False)
class LoadedBase:
    """A base model in memory (eval mode, gradients off) and its tokenizer."""

    model: Any
    tokenizer: Any


def load_base(
    base: Base,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    quantize: Quantize = "none",
    device_map: DeviceMap = "none",
) -> LoadedBase:
    """The model, as `load_model` loads it, and its tokenizer, which is loaded first."""
    check_code(base, trust_remote_code)
    tokenizer = load_tokenizer(base, trust_remote_code)
    placed = device, dtype, trust_remote_code, quantize, device_map
    return LoadedBase(load_model(base, *placed), tokenizer)


def load_tokenizer(base: Base, trusted: bool) -> Any:
    """The tokenizer, with a padding token. Raises BaseError if it cannot be loaded."""
    from transformers import AutoTokenizer

    check_tokenizer(base.path, base.reference)
    try:
        with quiet(), silenced():
            tokenizer = AutoTokenizer.from_pretrained(
                str(base.path), trust_remote_code=trusted, local_files_only=True
            )
            tokenizer(["a"])
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # a Rust panic is not an Exception
        raise BaseError(
            f"{base.reference} has no tokenizer that loads ({error_line(error)}); "
            "save the tokenizer beside the model."
        ) from error
    if tokenizer.pad_token_id is None:  # batches need one, which is masked
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_model(
    base: Base,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    quantize: Quantize = "none",
    device_map: DeviceMap = "none",
) -> Any:
    """Loads the causal language model (eval mode, no gradients) without any output.

    The repository's code runs only with trust_remote_code=True. quantize: "4bit" (NF4) or
    "8bit" (LLM.int8) by bitsandbytes while loading, computing in `dtype`. device_map: "auto"
    lets accelerate choose the devices and ignores `device`. Raises BaseError if the
    architecture is unknown, weights or a package are missing; OutOfMemory if the model does not
    fit.
    """
    from transformers import AutoModelForCausalLM

    check_code(base, trust_remote_code)
    placement = _placement(base, device, dtype, quantize, device_map)
    if device_map == "none":  # accelerate may also use the disk
        _check_room(base, dtype, str(device), quantize)
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(base.path),
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                local_files_only=True,
                output_loading_info=True,
                **placement,
            )
        model, report = loaded
        model = model if placement else model.to(device)
    except Exception as error:
        if memory.is_out_of_memory(error):
            raise OutOfMemory(
                f"The memory of {device} ran out while {base.reference} was loaded; use "
                "--dtype=bfloat16, --quantize=4bit, a smaller base model, or another --device."
            ) from error
        if "mismatched_sizes" in str(error):  # the message refers to a report that is not shown
            raise BaseError(
                f"config.json of {base.reference} declares other sizes than the tensors of its "
                "weight files have; download the model again."
            ) from error
        raise BaseError(
            f"{base.reference} ({base.model_type}) does not load as a causal language model "
            f"({error_line(error)}); give a complete one of an architecture that transformers "
            "knows."
        ) from error
    if report.get("missing_keys"):
        lost = sorted(report["missing_keys"])
        raise BaseError(
            f"{base.reference} lacks {len(lost)} weights of {base.architecture}, {lost[0]} among "
            "them, which would be random; it is not a complete causal language model."
        )
    return model.requires_grad_(False).eval()


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
        _need(["accelerate"], "--device-map=auto", "give --device instead")
        chosen["device_map"] = "auto"
    if quantize == "none":
        stored = bool(base.quantization) and find_spec("accelerate") is not None
        return {"device_map": {"": str(device)}} | chosen if stored else chosen
    if base.quantization:
        raise BaseError(f"{base.reference} is stored quantised already; leave --quantize out.")
    _need(["bitsandbytes", "accelerate"], f"--quantize={quantize}", "leave it out")
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
            f" not installed:",
            f"pip install {' '.join(lost)}, or {otherwise}.",
        )


def weight_bytes(base: Base, dtype: torch.dtype) -> int:
    """The bytes of all tensors of the weight files loaded in a dtype, from the headers."""
    return sum(
        math.prod(stored.shape) * (1 if stored.dtype in PACKED else dtype.itemsize)
        for stored in base.stored.values()
    )


def _check_room(base: Base, dtype: torch.dtype, device: str, quantize: Quantize) -> None:
    """Raises OutOfMemory with the needed bytes and with options that need less."""
    whole = (1 + OVERHEAD) * weight_bytes(base, dtype)
    sizes = {
        "none": whole,
        "8bit": whole * BYTES["8bit"] / dtype.itemsize,
        "4bit": whole * BYTES["4bit"] / dtype.itemsize,
    }
    less = []
    if quantize == "none" and dtype.itemsize > 2:
        less.append(f"--dtype=bfloat16 needs {size(whole * 2 / dtype.itemsize)}")
    less += [
        f"--quantize={bits} about {size(sizes[bits])}"
        for bits in ("8bit", "4bit")
        if sizes[bits] < sizes[quantize]
    ]
    kind = str(dtype).removeprefix("torch.") if quantize == "none" else quantize
    instead = ", ".join(less) or "take a smaller base"
    memory.require(int(sizes[quantize]), f"{base.reference} in {kind}", instead, device)


def check_code(base: Base, trusted: bool) -> None:
    """Raises BaseError for links out of the directory, and for code that is not trusted."""
    if not trusted and base.config.get("auto_map"):
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

        if base.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise BaseError(
                f"{base.reference} needs code of its own repository to run; if you trust it, "
                "pass --trust-remote-code."
            )
    for file in base.path.iterdir():  # transformers would follow any link
        check_link(file, base.reference)
    _ = base.stored


def pick_device(text: str) -> torch.device:
    """The device for `--device auto|cpu|cuda[:n]|mps`. Raises UsageError if it is absent."""
    if text == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", text):
        raise UsageError(f"--device must be auto, cpu, cuda, cuda:N or mps, not {text!r}.")
    device = torch.device(text)
    devices = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if (device.index or 0) >= devices[device.type]:
        raise UsageError(
            f"--device={text}: torch sees {int(devices[device.type])} {device.type} devices here; "
            "use --device=cpu."
        )
    return device


def pick_dtype(text: str, device: torch.device | str = "cpu") -> torch.dtype:
    """The dtype for `--dtype auto|float32|bfloat16|float16`.

    auto is float32 on the CPU and Metal; on CUDA it is bfloat16 if the card supports it, else
    float16. Raises UsageError for other names.
    """
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if text == "auto":
        if torch.device(device).type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if text not in named:
        raise UsageError(f"--dtype must be auto, {', '.join(named)}, not {text!r}.")
    return named[text]
