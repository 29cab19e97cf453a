"""One merge: its adapters and all choices, with defaults filled in; whether it fits into memory."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from loraprobe import memory
from loraprobe.adapters import Adapter, ModuleInfo
from loraprobe.merging._method import LinearMethod, MergeMethod

# Matrices of a module's size in addition to the n deltas: the result, a scratch matrix, and the
# remainder of the sketch.
MORE_MATRICES = 3


@runtime_checkable
class BaseTensors(Protocol):
    """The tensors of a base: W0 [out, in] of a module, and a parameter by its name, as stored."""

    def weight(self, module_path: str) -> Tensor: ...

    def parameter(self, name: str) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class MergePlan:
    """One merge, in which nothing is left to a default.

    rank: None for as many components as needed. dtype: of the written factors. allow: codes of
    issues that are accepted.
    """

    adapters: Sequence[Adapter]
    method: MergeMethod
    weights: tuple[float, ...]
    space: str
    rank: int | None
    seed: int
    dtype: torch.dtype
    base: BaseTensors | None = None
    allow: Collection[str] = ()

    @functools.cached_property
    def layout(self) -> Mapping[str, ModuleInfo]:
        """All modules that any adapter adapts, in the order in which the adapters list them."""
        found: dict[str, ModuleInfo] = {}
        for path, info in (item for a in self.adapters for item in a.layout.items()):
            # conv1d and linear differ in a flag that peft sets by the layer
            if path not in found or (found[path].kind, info.kind) == ("linear", "conv1d"):
                found[path] = info
        return found

    @property
    def carried(self) -> frozenset[str]:
        """The kinds of extra that the merge keeps."""
        return self.method.carried - ({"dora_magnitude"} if self.base is None else frozenset())

    @property
    def keeps_dora(self) -> bool:
        """Whether the result is a DoRA adapter, which needs the base."""
        return "dora_magnitude" in self.carried and any(a.magnitudes for a in self.adapters)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The factor of each adapter under a linear method; () under another."""
        if not isinstance(self.method, LinearMethod):
            return ()
        return self.method.coefficients(self.weights)

    @property
    def dense(self) -> bool:
        """Whether the method runs on deltas of full size [out, in].

        Where nothing is lost in `core`, the full space has the same result without them.
        """
        return self.space == "full" and "core" not in self.method.lossless

    def require_memory(self) -> None:
        """Raises OutOfMemory, naming the largest module and what would fit; no factor is read.

        Counted are the result's factors of all modules, [rank, in] and [out, rank] in the written
        dtype, and for one module all factors in float64, twice, and, where the method works on
        dense deltas, n + 3 matrices [out, in] in float32 (float64 for float64 factors).
        """
        kept, needs = 0, {}
        for path, info in self.layout.items():
            rank = sum(a.layout[path].rank for a in self.adapters if path in a.layout)
            width = info.in_features + info.out_features
            kept += (self.rank or rank) * width * self.dtype.itemsize
            needs[path] = 16 * rank * width
            if self.dense:
                matrix = info.out_features * info.in_features * max(self.dtype.itemsize, 4)
                needs[path] += (len(self.adapters) + MORE_MATRICES) * matrix
        largest = max(needs, key=lambda path: needs[path])
        info = self.layout[largest]
        memory.require(
            kept + needs[largest],
            f"The merge (largest module {largest}, [{info.out_features}, {info.in_features}])",
            "take --space core or knots, which stay small, or a method in factors such as uniform"
            if self.dense
            else "give a smaller --rank, or fewer adapters at a time",
        )
