"""Scaled experts (DoRA): g * ((c - 1) * (W0 x) + c * (s B A x)).

c = m / rownorm(W0 + s B A), [out], is the adapter's magnitude divided by the norm of the row. W0 x
is the layer's own output, so an expert depends on W0 only through c. Neither W0 + s B A nor a
second product with W0 is formed.

Row norms are computed from the factors as ||w0||^2 + 2 <w0, dw> + ||dw||^2, in float64 and for a
few rows at a time. Rows for which these terms nearly cancel are formed explicitly. For a row of
norm 0, c is 1, so that the row stays 0 (peft divides by 0 there).

The weights, biases and devices of a model's layers are read here too, also of quantised or
offloaded ones. arXiv 2402.09353, equation 5; peft's DoraLinearLayer is the reference for
conventions.
"""

from __future__ import annotations

import contextlib
import copy
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loraprobe.adapters import Adapter
from loraprobe.errors import UnsupportedAdapter
from loraprobe.lora.lowrank import LowRank

AT_ONCE = 1 << 19  # entries in float64 at one time, which fit into the cache
CANCELS = 1e-6  # share of ||w0||^2 + ||dw||^2 below which the row is formed explicitly
NO_DIRECTION = 1e-30  # share below which the row is only rounding error

Fingerprint = tuple[int, int, int]  # identity, address and version of the stored tensor

_RATIOS: Any = weakref.WeakKeyDictionary()  # model -> adapter -> path -> (fingerprint, c)


def dora_update(
    update: LowRank, adapter: Adapter, path: str, model: nn.Module
) -> tuple[LowRank, Float[Tensor, out]]:
    """c * s B A, and the factor c - 1 of W0 x, by the adapter's magnitudes for this module.

    c is kept as long as the model exists and the weight of the module does not change. Raises
    UnsupportedAdapter if the module's weight cannot be read.
    """
    known = _RATIOS.setdefault(model, weakref.WeakKeyDictionary()).setdefault(adapter, {})
    module = model.get_submodule(path)
    mark = fingerprint(module)
    if path not in known or known[path][0] != mark:
        weight = dense_weight(module, path, f"The DoRA adapter {adapter.name}")
        known[path] = (
            mark,
            magnitude_ratio(adapter.modules[path], adapter.magnitudes[path], weight).cpu(),
        )
    c, update = known[path][1], update.folded()
    B = c[:, None].to(update.B) * update.B
    return LowRank(update.A, B, 1.0), (c - 1).to(B)


def magnitude_ratio(
    update: LowRank, magnitude: Float[Tensor, out], weight: Float[Tensor, "out in"]
) -> Float[Tensor, out]:
    """c = m / rownorm(W0 + dW): [out], float64 (float32 on Metal), 1 where that norm is 0.

    magnitude: [out]; weight: W0, [out, in] in any floating dtype, on the device that computes.
    """
    dtype = torch.float32 if weight.device.type == "mps" else torch.float64
    update = update.to(dtype=dtype, device=weight.device).folded()
    rows = max(1, AT_ONCE // max(1, weight.shape[1]))
    squares = [
        _square_norms(weight[start : start + rows].to(dtype), update, start)
        for start in range(0, weight.shape[0], rows)
    ]
    norm = torch.cat(squares).sqrt()
    magnitude = magnitude.to(norm)
    return torch.where(norm > 0, magnitude / torch.where(norm > 0, norm, 1), 1)


def change_norm(
    update: LowRank, magnitude: Float[Tensor, out], weight: Float[Tensor, "out in"]
) -> float:
    """||(c - 1) W0 + c dW||_F, the change of a module's weight [out, in] by a scaled expert."""
    c = magnitude_ratio(update, magnitude, weight)
    return float(change_products([update], c[None], weight)) ** 0.5


def change_products(
    updates: Sequence[LowRank], ratios: Float[Tensor, "n out"], weight: Float[Tensor, "out in"]
) -> Float[Tensor, "n n"]:
    """<D_i, D_j> of the changes D_i = (c_i - 1) W0 + c_i dW_i of a module's weight by n experts."""
    c, n = ratios[..., None], len(updates)
    wide = [update.to(dtype=c.dtype, device=c.device).folded() for update in updates]
    rows = max(1, AT_ONCE // max(1, n * weight.shape[1]))
    products = c.new_zeros(n, n)
    for start in range(0, weight.shape[0], rows):
        part = slice(start, start + rows)
        changes = (c[:, part] - 1) * weight[part].to(c)
        for change, update, scales in zip(changes, wide, c[:, part], strict=True):
            change.addmm_(scales * update.B[part], update.A)
        flat = changes.flatten(1)
        products += flat @ flat.mT
    return products


def _square_norms(weight: Tensor, update: LowRank, start: int) -> Tensor:
    """||w0 + dw||^2 of the rows from `start` on: [rows]; exactly 0 for rounding errors."""
    A, B = update.A, update.B[start : start + weight.shape[0]]
    of_weight = weight.square().sum(1)
    moved = ((B @ (A @ A.mT)) * B).sum(1).clamp_min(0)
    square = of_weight + 2 * ((weight @ A.mT) * B).sum(1) + moved
    near = (square <= CANCELS * (of_weight + moved)).nonzero()[:, 0]
    if len(near):
        rows = weight[near] + B[near] @ A
        square[near] = rows.square().sum(1)
    return torch.where(square > NO_DIRECTION * (of_weight + moved), square, 0)


# Weights of a model's layers.


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
    tensors = (getattr(module, name, None) for name in ("weight", "W_q", "qweight"))
    weight = next((tensor for tensor in tensors if isinstance(tensor, Tensor)), None)
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
            dense = offered()
            return dense if isinstance(dense, Tensor) else None
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
