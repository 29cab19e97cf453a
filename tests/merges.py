"""Adapters to merge, the distance of two merges, and TIES written out entry by entry."""

import dataclasses
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from making import dense, random_update

from loraprobe import merging
from loraprobe.adapters import Adapter, adapter_of
from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank
from loraprobe.lora.spaces import SPACES
from loraprobe.merging import METHODS, FactorMethod, MergeConfig, Merged, MergeMethod

F64 = torch.float64
TIGHT = {"rtol": 1e-7, "atol": 1e-9}
HOLDS, FAILS = 1e-7, 1e-2  # relative errors in float64: rounding, and not rounding
WEIGHTS = (0.9, 0.4, 1.3)


def merge(
    adapters: Sequence[Adapter],
    method: str | MergeMethod = "uniform",
    *,
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    space: str | None = None,
    seed: int = 0,
    dtype: torch.dtype | None = None,
    allow: Sequence[str] = (),
    **inputs: Any,
) -> Merged:
    """The merge of the engine. method: also by its spec. inputs: keywords of the engine's."""
    made = METHODS.make(method)
    config = MergeConfig(made, tuple(weights or ()), space or "", rank, seed, dtype, allow)
    return merging.merge(adapters, config, **inputs)


def takes(method: MergeMethod, n: int) -> bool:
    """Whether a method takes n adapters."""
    try:
        method.check((1.0,) * n)
    except UsageError:
        return False
    return True


def planted(method: MergeMethod) -> list[Adapter]:
    """Three adapters of mixed ranks; one lacks a module if the method allows that.

    All share one component, so that a method that keeps what they share has something to keep.
    Two of them for a method that takes no more.
    """
    equal = isinstance(method, FactorMethod)
    adapters = []
    for i, (name, rank) in enumerate(zip("abc", (3, 3, 3) if equal else (3, 1, 4), strict=True)):
        modules = {
            "layers.0.up": akin(random_update(14, 11, rank, 10 + i, 0.5 + i, torch.float64)),
            "layers.1.up": akin(random_update(9, 16, rank, 20 + i, 1.5 - i / 2, torch.float64)),
        }
        if name == "b" and not equal:
            del modules["layers.1.up"]
        adapters.append(adapter_of(name, modules))
    return adapters if takes(method, 3) else adapters[:2]


def akin(update: LowRank) -> LowRank:
    """The update plus a component that all updates of its shape share."""
    common = random_update(update.out_features, update.in_features, 1, 99, 1.0, torch.float64)
    B = torch.cat([update.B, common.B / update.scaling], 1)
    return LowRank(torch.cat([update.A, common.A]), B, update.scaling)


def rewritten(adapter: Adapter, change: Callable) -> Adapter:
    return adapter_of(adapter.name, {p: change(p, u) for p, u in adapter.modules.items()})


def distance(one: Adapter, other: Adapter, factor: float = 1.0) -> float:
    """||dW_one - factor dW_other||_F / ||dW_one||_F over all modules."""
    ours, theirs = ({p: dense(u) for p, u in a.modules.items()} for a in (one, other))
    assert ours.keys() == theirs.keys()
    gap = sum(float((ours[p] - factor * theirs[p]).square().sum()) for p in ours)
    return (gap / sum(float(d.square().sum()) for d in ours.values())) ** 0.5


def run(
    method: MergeMethod, space: str | None, adapters: Sequence[Adapter], weights: Sequence[float]
) -> Adapter:
    weights = weights[: len(adapters)]
    return merge(adapters, method, weights=weights, space=space, seed=5).adapter


def specs(name: str) -> list[str]:
    """The method with its defaults, and with every other value of each option of a few words."""
    cls = METHODS.get(name)
    hints, found = typing.get_type_hints(cls), [name]
    for field in dataclasses.fields(cls):
        if typing.get_origin(hints[field.name]) is Literal:
            words = typing.get_args(hints[field.name])
            found += [f"{name}:{field.name}={word}" for word in words if word != field.default]
    return found


EVERY_SPEC = [spec for name in METHODS.names() for spec in specs(name)]


def spaces(method: MergeMethod) -> list[str | None]:
    return [None] if isinstance(method, FactorMethod) else list(SPACES)


def sources(ranks=(3, 2, 4), dtype=F64, out=7, inp=6) -> list[Adapter]:
    """One-module adapters of mixed ranks and scalings."""
    return [
        adapter_of(f"a{i}", {"up": random_update(out, inp, r, 40 + i, 0.3 + i / 2, dtype)})
        for i, r in enumerate(ranks)
    ]


def delta(adapter: Adapter, path: str = "up") -> torch.Tensor:
    return dense(adapter.modules[path])


def trimmed(matrix: torch.Tensor, density: float) -> torch.Tensor:
    """Keeps the largest int(density n) entries by absolute value."""
    kept = sorted(matrix.flatten().tolist(), key=abs)[-max(1, int(density * matrix.numel())) :]
    smallest = min(map(abs, kept))
    return torch.where(matrix.abs() >= smallest, matrix, torch.zeros_like(matrix))


def ties_entry(entries: list[float], weights: list[float], variant: str) -> float:
    """TIES' election and merge for one entry, by the formulas of the two tools."""
    voters = [w * e for w, e in zip(weights, entries, strict=True)]
    if variant == "peft":
        voters = entries
    sign = 1 if sum(voters) >= 0 else -1
    agree = [i for i, v in enumerate(voters) if v * sign > 0]
    total = sum(weights[i] * entries[i] for i in agree)
    divisor = len(agree) if variant == "peft" else sum(weights[i] for i in agree)
    return total / divisor if agree else 0.0


def ties_dense(deltas: list[torch.Tensor], weights: list[float], variant: str) -> torch.Tensor:
    merged = torch.zeros_like(deltas[0])
    for i in range(merged.shape[0]):
        for j in range(merged.shape[1]):
            entries = [float(d[i, j]) for d in deltas]
            merged[i, j] = ties_entry(entries, weights, variant)
    return merged


def adapters_of(updates: list[LowRank]) -> list[Adapter]:
    return [adapter_of(f"a{i}", {"up": update}) for i, update in enumerate(updates)]


def close(adapter: Adapter, expected: np.ndarray | torch.Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(
        delta(adapter), torch.as_tensor(expected), **(tolerance or TIGHT), check_dtype=False
    )
