"""Weights, biases and devices of a model's layers, also of quantised or offloaded ones."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import torch
from torch import Tensor, nn

from loraprobe.errors import UnsupportedAdapter

Fingerprint = tuple[int, int, int]  # identity, address and version of the stored tensor


def dense_weight(module: nn.Module, path: str, needed_by: str) -> Tensor:
    """W0 of a linear, Conv1D, embedding or convolution layer, oriented as a delta: [out, in].

    A convolution's [out, in, *kernel] is flattened to [out, in * prod(kernel)]. Quantised weights
    (bitsandbytes, torchao, HQQ and others with a `dequantize` method) are returned in floating
    point. Weights that accelerate has offloaded are loaded for the duration of the call.

    Raises UnsupportedAdapter, which names the module and `needed_by`, if the weight cannot be
    converted to floating point.
    """
    with _in_memory(module):
        weight = _dequantised(module)
        if weight is None or weight.device.type == "meta":
            raise UnsupportedAdapter(
                f"{needed_by} needs the weight of {path}, which this {type(module).__name__} holds "
                "in a form that cannot be read; load the base unquantised and in memory."
            )
        if isinstance(module, nn.Embedding) or type(module).__name__ == "Conv1D":
            return weight.mT
        return weight.flatten(1)


def fingerprint(module: nn.Module) -> Fingerprint | None:
    """A value that changes if a layer's weight is replaced or modified; None without a weight."""
    held = (getattr(module, name, None) for name in ("weight", "W_q", "qweight"))
    weight = next((tensor for tensor in held if isinstance(tensor, Tensor)), None)
    if weight is None:
        return None
    if weight.device.type == "meta":
        return 0, 0, 0  # offloaded by accelerate, which makes a new empty tensor every time
    # Tensors made in inference mode have no version, so only identity and address are compared.
    return id(weight), weight.data_ptr(), -1 if weight.is_inference() else weight._version


def bias_of(module: nn.Module) -> Tensor | None:
    """The current bias of a layer; None if it has none.

    A bias that accelerate has offloaded is returned as a copy.
    """
    bias = getattr(module, "bias", None)
    if isinstance(bias, Tensor) and bias.device.type == "meta":
        with _in_memory(module):
            return module.get_parameter("bias").detach().clone()
    return bias if isinstance(bias, Tensor) else None


def device_of(module: nn.Module) -> torch.device:
    """The device on which a module computes; accelerate's if its weights are offloaded."""
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if tensor.device.type != "meta":
            return tensor.device
    hook = getattr(module, "_hf_hook", None)
    return torch.device(getattr(hook, "execution_device", None) or "cpu")


def _dequantised(module: nn.Module) -> Tensor | None:
    """The weight in floating point, in its stored orientation; None if it cannot be converted."""
    weight: Any = getattr(module, "weight", None)
    kind = type(weight).__name__
    if kind in ("Params4bit", "Int8Params"):
        return _from_bitsandbytes(module, weight)
    for holder in (weight, module):
        offered: Any = getattr(holder, "dequantize", None)
        # plain tensors have it too, without effect
        if callable(offered) and type(holder) not in (Tensor, nn.Parameter):
            made = offered()
            return made if isinstance(made, Tensor) else None
    if isinstance(weight, Tensor) and weight.is_floating_point() and weight.ndim >= 2:
        return weight.detach() if weight.element_size() > 1 else None
    return None


def _from_bitsandbytes(module: nn.Module, weight: Any) -> Tensor | None:
    try:
        import bitsandbytes.functional as bnb
    except ImportError:
        return None
    if type(weight).__name__ == "Params4bit":
        if weight.quant_state is None:  # set when the weight is moved to its device
            return weight.detach() if weight.is_floating_point() else None
        stored, quantised = weight.data, weight.quant_state
        if getattr(quantised, "packing_format_for_cpu", False):
            # On CPUs with AVX-512 BF16 the first forward pass changes the layout of the weight.
            unpack = getattr(bnb, "_convert_weight_packed_for_cpu_inverse", None)
            if unpack is None:
                return None
            stored, quantised = unpack(stored, copy.deepcopy(quantised))
            if quantised.absmax.ndim == 2:  # its inverse leaves these scales transposed
                quantised.absmax = quantised.absmax.mT.reshape(-1).float()
        return bnb.dequantize_4bit(stored, quantised)
    state = getattr(module, "state", None)
    scales = weight.SCB if getattr(weight, "SCB", None) is not None else getattr(state, "SCB", None)
    if scales is None:
        return weight.detach() if weight.is_floating_point() else None
    return bnb.int8_vectorwise_dequant(weight.data, scales)


def _in_memory(module: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Loads a module's offloaded weights while the context lasts."""
    if not hasattr(module, "_hf_hook"):
        return contextlib.nullcontext()
    from accelerate.utils import align_module_device

    return align_module_device(module)
