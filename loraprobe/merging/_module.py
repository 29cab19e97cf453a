"""Merging one module: the method's result, cut to the rank, with what was lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from loraprobe.adapters import Adapter
from loraprobe.errors import OutputError
from loraprobe.lora.lowrank import LowRank
from loraprobe.lora.spaces import space_named
from loraprobe.merging._choices import Choices
from loraprobe.merging._compress import Compressed, SideBySide, compress_dense, compress_factors
from loraprobe.merging._dora import check_weight, merge_dora
from loraprobe.merging._method import FactorMethod, GramMethod
from loraprobe.merging._seeds import generators, module_seed
from loraprobe.merging._validation import check_finite


@dataclass(frozen=True, eq=False)
class MergedModule:
    """One module of a merge, in the dtype in which it is written.

    inner: inner products of the sources' changes, [n, n]. Squared Frobenius norms: norm2 of the
    exact result, lost2 of what the rank cut, gained2 of what the last round of a sketch added,
    rounded2 of the error of writing.
    """

    update: LowRank
    magnitudes: Tensor | None
    inner: Float64[Tensor, "n n"]
    norm2: float
    lost2: float
    gained2: float
    rounded2: float


def merge_module(
    path: str, updates: Sequence[LowRank], adapters: Sequence[Adapter], choices: Choices
) -> MergedModule:
    """Merge one module of all adapters; `updates` has rank 0 where an adapter lacks the module.

    Raises AdapterError for NaN or Inf in a factor, CompatibilityError for a base of another shape,
    OutputError where the result does not fit into the dtype.
    """
    factors = SideBySide.of(updates)
    diagonals = torch.stack([gram.diagonal() for gram in factors.grams])
    check_finite(diagonals, factors.ranks, [a.name for a in adapters], path)
    magnitudes = None
    if not (choices.dora and choices.base):
        inner, exact = factors.inner, _computed(path, factors, choices)
        update = exact.update.to(choices.dtype)
        rounded2 = _rounding2(exact.update, update)
    else:
        weight = choices.base.weight(path)
        check_weight(path, updates[0], weight)
        given = [a.magnitudes.get(path) for a in adapters]
        merged = merge_dora(updates, given, choices.coefficients, weight, choices.rank)
        inner, exact = merged.inner, merged.kept
        update, magnitudes = merged.written(weight, choices.dtype)
        rounded2 = _rounding2(exact.update, merged.effective(update))
    if not math.isfinite(rounded2):
        dtype = str(choices.dtype).removeprefix("torch.")
        raise OutputError(
            f"The merge does not fit into {dtype} in module {path}; write it in float32."
        )
    return MergedModule(
        update, magnitudes, inner, exact.norm2, exact.lost2, exact.gained2, rounded2
    )


def _computed(path: str, factors: SideBySide, choices: Choices) -> Compressed:
    """The method's result in one module, cut to the rank."""
    method, rank = choices.method, choices.rank
    if isinstance(method, GramMethod):
        return factors.combined(method.coefficients(choices.weights, factors.inner), rank)
    weights = torch.tensor(choices.weights, dtype=torch.float64)
    if isinstance(method, FactorMethod):
        return compress_factors(_on_factors(method, factors, weights), rank)
    work = torch.float32 if choices.dense and not factors.double else torch.float64
    space = "core" if choices.space == "full" and not choices.dense else choices.space
    stacked = space_named(space).stacked(factors.updates(work))
    masks = generators(factors.updates(torch.float64), path, choices.seed)
    result = stacked.back(method(stacked.matrices, weights.to(work), masks))
    if isinstance(result, LowRank):
        return compress_factors(result, rank)
    start, seed = factors.A.mT.to(work), module_seed(path, choices.seed)
    return compress_dense(result, rank, sum(factors.ranks), start, seed)


def _on_factors(method: FactorMethod, factors: SideBySide, weights: Float64[Tensor, n]) -> LowRank:
    """The method on the stacked A's and on the stacked B's, sqrt(|s|) in each, s's sign in B."""
    weights_A, weights_B = method.factor_weights(weights)
    updates = factors.updates(torch.float64)
    roots = [abs(s) ** 0.5 for s in factors.scalings]
    A = method(torch.stack([u.A * r for u, r in zip(updates, roots, strict=True)]), weights_A)
    signed = [math.copysign(r, s) for r, s in zip(roots, factors.scalings, strict=True)]
    B = method(torch.stack([u.B * r for u, r in zip(updates, signed, strict=True)]), weights_B)
    return LowRank(A, B)


def _rounding2(exact: LowRank, written: LowRank) -> float:
    """||B' A' - B A||_F^2 as the norm of (B' - B) A' + B (A' - A), in which nothing cancels.

    Not finite if an entry does not fit into the written dtype.
    """
    A = torch.cat([written.A.float(), (written.A - exact.A).float()])
    B = torch.cat([(written.B - exact.B).float(), exact.B.float()], 1)
    square = float(((B.mT @ B) * (A @ A.mT)).sum())
    return max(0.0, square) if math.isfinite(square) else math.inf
