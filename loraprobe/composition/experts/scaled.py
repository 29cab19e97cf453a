"""Scaled experts (DoRA): g * ((c - 1) * (W0 x) + c * (s B A x)).

c = m / rownorm(W0 + s B A), [out], is the ratio of the magnitudes that the adapter holds to the
row norms that its direction has. W0 x comes from the layer itself, so the only trace of W0 in an
expert is c, and neither W0 + s B A nor a second product with W0 is ever formed for a token.

Row norms come from the factors: ||w0||^2 + 2 <w0, dw> + ||dw||^2 row by row, in float64 and a few
rows at a time. Where these three nearly cancel, the row is formed. A row of length 0 has no
direction to scale: its c is 1, which leaves it 0 whatever its magnitude (peft divides by 0 there).

arXiv 2402.09353, equation 5; peft's DoraLinearLayer is the reference for conventions.
"""

from __future__ import annotations

import weakref
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loraprobe.adapters import Adapter
from loraprobe.composition.experts.low_rank import ExpertTerm
from loraprobe.composition.weights import Fingerprint, dense_weight, fingerprint
from loraprobe.lora.lowrank import LowRank

ROWS_AT_ONCE = 1 << 22  # entries of W0 in float64 at one time
CANCELS = 1e-6  # share of ||w0||^2 + ||dw||^2 below which a squared norm is computed anew
NO_DIRECTION = 1e-30  # share below which not even the row itself holds more than rounding

_Known = dict[str, tuple[Fingerprint | None, Tensor]]
_RATIOS: weakref.WeakKeyDictionary[nn.Module, weakref.WeakKeyDictionary[Adapter, _Known]] = (
    weakref.WeakKeyDictionary()
)


def scaled(share: ExpertTerm, adapter: Adapter, path: str, model: nn.Module) -> ExpertTerm:
    """A low-rank share with the magnitudes that the adapter holds for this module.

    Raises UnsupportedAdapter where the module's weight cannot be read.
    """
    c = _ratio_in(model, adapter, path)
    update = share.update.folded()
    B = c[:, None].to(update.B) * update.B
    return replace(share, update=LowRank(update.A, B, 1.0), ratio=(c - 1).to(B))


def ratio(
    update: LowRank, magnitude: Float[Tensor, out], weight: Float[Tensor, "out in"]
) -> Float[Tensor, out]:
    """c = m / rownorm(W0 + dW): [out], float64 (float32 on Metal), 1 where that norm is 0.

    magnitude: [out]; weight: W0, [out, in] in any floating dtype, on the device that computes.
    """
    dtype = torch.float32 if weight.device.type == "mps" else torch.float64
    update = update.to(dtype=dtype, device=weight.device).folded()
    rows = max(1, ROWS_AT_ONCE // max(1, weight.shape[1]))
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
    """||(c - 1) W0 + c dW||_F: how far a scaled expert moves a module's weight [out, in]."""
    c = ratio(update, magnitude, weight)[:, None]
    update = update.to(dtype=c.dtype, device=c.device).folded()
    rows = max(1, ROWS_AT_ONCE // max(1, weight.shape[1]))
    square = 0.0
    for start in range(0, weight.shape[0], rows):
        part = slice(start, start + rows)
        change = (c[part] - 1) * weight[part].to(c) + c[part] * (update.B[part] @ update.A)
        square += float(change.square().sum())
    return square**0.5


def _square_norms(weight: Tensor, update: LowRank, start: int) -> Tensor:
    """||w0 + dw||^2 of the rows that begin at `start`: [rows]; exactly 0 where it is rounding."""
    A, B = update.A, update.B[start : start + weight.shape[0]]
    own = weight.square().sum(1)
    moved = ((B @ (A @ A.mT)) * B).sum(1).clamp_min(0)
    square = own + 2 * ((weight @ A.mT) * B).sum(1) + moved
    near = (square <= CANCELS * (own + moved)).nonzero()[:, 0]
    if len(near):
        rows = weight[near] + B[near] @ A
        square[near] = rows.square().sum(1)
    return torch.where(square > NO_DIRECTION * (own + moved), square, 0)


def _ratio_in(model: nn.Module, adapter: Adapter, path: str) -> Tensor:
    """c of one module in a model, kept for as long as the model and its weight are the same."""
    known = _RATIOS.setdefault(model, weakref.WeakKeyDictionary()).setdefault(adapter, {})
    module = model.get_submodule(path)
    mark = fingerprint(module)
    if path not in known or known[path][0] != mark:
        weight = dense_weight(module, path, f"The DoRA adapter {adapter.name}")
        c = ratio(adapter.modules[path], adapter.magnitudes[path], weight)
        known[path] = mark, c.cpu()
    return known[path][1]
