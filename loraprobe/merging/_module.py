"""Merging one module: factors -> space -> method -> rank, with what was lost."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from loraprobe.errors import CompatibilityError, OutputError
from loraprobe.lora.lowrank import LowRank
from loraprobe.lora.spaces import space_named
from loraprobe.merging._compress import Compressed, SideBySide, compress_dense, compress_factors
from loraprobe.merging._dora import merge_dora
from loraprobe.merging._method import FactorMethod, GramMethod
from loraprobe.merging._plan import MergePlan
from loraprobe.merging._validation import check_finite

# Projections are rounded to this resolution: coarser than rounding errors, fine enough to tell
# adapters apart.
RESOLUTION = 1024


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


def merge_module(path: str, plan: MergePlan) -> MergedModule:
    """Merge one module; an adapter that lacks it counts as an update of rank 0.

    Raises AdapterError for NaN or Inf in a factor, CompatibilityError for a base of another shape,
    OutputError where the result does not fit into the dtype.
    """
    info = plan.layout[path]
    absent = LowRank(torch.zeros(0, info.in_features), torch.zeros(info.out_features, 0))
    updates = [adapter.modules.get(path, absent) for adapter in plan.adapters]
    factors = SideBySide.of(updates)
    check_finite(factors, [a.name for a in plan.adapters], path)
    magnitudes = None
    if plan.base is None or not plan.keeps_dora:
        inner, exact = factors.inner, _computed(path, factors, plan)
        update = exact.update.to(plan.dtype)
        rounded2 = _rounding2(exact.update, update)
    else:
        weight = plan.base.weight(path)
        if weight.shape != (info.out_features, info.in_features):
            raise CompatibilityError(
                f"Module {path} is {[info.out_features, info.in_features]} in the adapters and "
                f"{list(weight.shape)} in the base; give the base that they were trained on."
            )
        given = [a.magnitudes.get(path) for a in plan.adapters]
        merged = merge_dora(updates, given, plan.coefficients, weight, plan.rank)
        inner, exact = merged.inner, merged.kept
        update, magnitudes = merged.written(weight, plan.dtype)
        rounded2 = _rounding2(exact.update, merged.effective(update))
    if not math.isfinite(rounded2):
        dtype = str(plan.dtype).removeprefix("torch.")
        raise OutputError(
            f"The merge does not fit into {dtype} in module {path}; write it in float32."
        )
    return MergedModule(
        update, magnitudes, inner, exact.norm2, exact.lost2, exact.gained2, rounded2
    )


def _computed(path: str, factors: SideBySide, plan: MergePlan) -> Compressed:
    """The method's result in one module, cut to the rank."""
    method, rank = plan.method, plan.rank
    if isinstance(method, GramMethod):
        return factors.combined(method.coefficients(plan.weights, factors.inner), rank)
    weights = torch.tensor(plan.weights, dtype=torch.float64)
    if isinstance(method, FactorMethod):
        return compress_factors(method.combined(factors.updates(torch.float64), weights), rank)
    work = torch.float32 if plan.dense and not factors.double else torch.float64
    space = "core" if plan.space == "full" and not plan.dense else plan.space
    stacked = space_named(space).stacked(factors.updates(work))
    masks = generators(factors.updates(torch.float64), path, plan.seed)
    result = stacked.back(method(stacked.matrices, weights.to(work), masks))
    if isinstance(result, LowRank):
        return compress_factors(result, rank)
    start, seed = factors.A.mT.to(work), _number(f"{plan.seed}:{path}")
    return compress_dense(result, rank, sum(factors.ranks), start, seed)


def generators(updates: Sequence[LowRank], module: str, seed: int) -> list[torch.Generator]:
    """One generator per delta of a module, seeded by seed, module and the direction of the delta.

    So random masks depend on the content of an adapter and not on its place in the list. The
    direction is given by three projections u^T dW v / ||dW||_F on fixed random u, v. A change
    of basis or a positive factor does not change them. They are rounded, so that rounding errors
    do not matter either, except for a projection within about 1e-7 of a rounding step.
    """
    return [torch.Generator().manual_seed(_digest(seed, module, u)) for u in updates]


def _digest(seed: int, module: str, update: LowRank) -> int:
    draw = torch.Generator().manual_seed(_number(f"0:{module}"))
    u = torch.randn(update.out_features, 3, generator=draw, dtype=torch.float64)
    v = torch.randn(update.in_features, 3, generator=draw, dtype=torch.float64)
    exact = update.to(torch.float64)
    projections = ((u.mT @ exact.B).mT * (exact.A @ v)).sum(0) * exact.scaling
    direction = projections / exact.norm().clamp_min(torch.finfo(torch.float64).tiny)
    rounded = (direction * RESOLUTION).round().to(torch.int64).tolist()
    return _number(f"{seed}:{module}:{rounded}")


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _rounding2(exact: LowRank, written: LowRank) -> float:
    """||B' A' - B A||_F^2 as the norm of (B' - B) A' + B (A' - A), in which nothing cancels.

    Not finite if an entry does not fit into the written dtype.
    """
    A = torch.cat([written.A.float(), (written.A - exact.A).float()])
    B = torch.cat([(written.B - exact.B).float(), exact.B.float()], 1)
    square = float(((B.mT @ B) * (A @ A.mT)).sum())
    return max(0.0, square) if math.isfinite(square) else math.inf
