"""What a merge adds up over its modules: norms, losses, the sources' inner products."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float64
from torch import Tensor

from loraprobe.adapter import Adapter, extreme_norm
from loraprobe.lora.lowrank import LowRank
from loraprobe.records import Issue


@dataclass
class Totals:
    """Sums over modules: inner products of the sources [n, n], and squared norms.

    largest: for each source the largest squared norm of a module's delta, and that module.
    """

    inner: Float64[Tensor, "n n"]
    largest: list[tuple[float, str]]
    merged: float = 0.0
    lost: float = 0.0
    rounded: float = 0.0
    gained: float = 0.0
    modules: dict[str, LowRank] = field(default_factory=dict)
    magnitudes: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, n: int) -> Totals:
        """Nothing seen yet of n sources."""
        return cls(torch.zeros(n, n, dtype=torch.float64), [(0.0, "")] * n)

    def see(self, path: str, inner: Float64[Tensor, "n n"]) -> None:
        """Adds the sources of one module."""
        self.inner += inner
        squares = inner.diagonal().tolist()
        pairs = zip(self.largest, squares, strict=True)
        self.largest = [max(known, (square, path)) for known, square in pairs]

    def extremes(self, adapters: Sequence[Adapter]) -> list[Issue]:
        """Sources with a delta that no sound training gives."""
        return [
            issue
            for adapter, (square, path) in zip(adapters, self.largest, strict=True)
            for issue in extreme_norm(adapter.name, math.sqrt(max(square, 0.0)), path)
        ]
