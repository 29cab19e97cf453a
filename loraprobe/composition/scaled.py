"""Scaled experts (DoRA): g * ((c - 1) * (W0 x) + c * (s B A x)).

c = m / rownorm(W0 + s B A), [out], is the adapter's magnitude divided by the norm of the row. W0 x
is the layer's own output, so an expert depends on W0 only through c. Neither W0 + s B A nor a
second product with W0 is formed.

Row norms are computed from the factors as ||w0||^2 + 2 <w0, dw> + ||dw||^2, in float64 and for a
few rows at a time. Rows for which these terms nearly cancel are formed explicitly. For a row of
norm 0, c is 1, so that the row stays 0 (peft divides by 0 there).

arXiv 2402.09353, equation 5; peft's DoraLinearLayer is the reference for conventions.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loraprobe.adapters import Adapter
from loraprobe.composition.weights import dense_weight, fingerprint
from loraprobe.lora.lowrank import LowRank

AT_ONCE = 1 << 19  # entries in float64 at one time, which fit into the cache
CANCELS = 1e-6  # share of ||w0||^2 + ||dw||^2 below which the row is formed explicitly
NO_DIRECTION = 1e-30  # share below which the row is only rounding error

_RATIOS: Any = weakref.WeakKeyDictionary()  # model -> adapter -> path -> (fingerprint, c)


def scaled(
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
        known[path] = mark, ratio(adapter.modules[path], adapter.magnitudes[path], weight).cpu()
    c, update = known[path][1], update.folded()
    B = c[:, None].to(update.B) * update.B
    return LowRank(update.A, B, 1.0), (c - 1).to(B)


def ratio(
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
    c = ratio(update, magnitude, weight)
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
        for change, update, own in zip(changes, wide, c[:, part], strict=True):
            change.addmm_(own * update.B[part], update.A)
        flat = changes.flatten(1)
        products += flat @ flat.mT
    return products


def _square_norms(weight: Tensor, update: LowRank, start: int) -> Tensor:
    """||w0 + dw||^2 of the rows from `start` on: [rows]; exactly 0 for rounding errors."""
    A, B = update.A, update.B[start : start + weight.shape[0]]
    own = weight.square().sum(1)
    moved = ((B @ (A @ A.mT)) * B).sum(1).clamp_min(0)
    square = own + 2 * ((weight @ A.mT) * B).sum(1) + moved
    near = (square <= CANCELS * (own + moved)).nonzero()[:, 0]
    if len(near):
        rows = weight[near] + B[near] @ A
        square[near] = rows.square().sum(1)
    return torch.where(square > NO_DIRECTION * (own + moved), square, 0)
