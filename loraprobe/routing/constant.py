"""Constant gates: the base, one adapter, the sum, the average, any linear merge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from loraprobe.adapters import Adapter
from loraprobe.composition import Composition, Router
from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank


@dataclass(frozen=True)
class ConstantGates(Router):
    """Gates that do not depend on the input: sum_i w_i dW_i, exactly, without new weights.

    `weights` has one number per expert and is used as given, never normalised; None means 1/n.
    An expert that lacks a module counts as a zero delta there, so that uniform gates stay the
    exact mean of the deltas.
    """

    weights: tuple[float, ...] | None = None

    registry_name: ClassVar[str] = "constant"
    constant: ClassVar[bool] = True
    laws: ClassVar[frozenset[str]] = frozenset(
        {"identity", "order", "gauge", "homogeneity", "linearity", "input_scale", "absent_is_zero"}
    )
    formula: ClassVar[str] = "y = W x + sum_i w_i s_i B_i A_i x,  w_i = 1/n unless given"
    paper: ClassVar[str] = "linear combination of deltas; uniform averaging: arXiv 2203.05482"

    def __post_init__(self) -> None:
        if self.weights is None:
            return
        if isinstance(self.weights, str) or any(isinstance(w, str) for w in self.weights):
            raise ValueError("weights must be numbers; on the command line use --weights")
        weights = tuple(float(w) for w in self.weights)
        if not all(math.isfinite(w) for w in weights):
            raise ValueError("weights must be finite numbers")
        object.__setattr__(self, "weights", weights)

    @classmethod
    def one_hot(cls, i: int, n: int) -> ConstantGates:
        """The i-th of n experts alone."""
        if not 0 <= i < n:
            raise ValueError(f"expert {i} of {n} does not exist")
        return cls(tuple(float(j == i) for j in range(n)))

    @classmethod
    def ones(cls, n: int) -> ConstantGates:
        """The sum of the deltas."""
        return cls((1.0,) * n)

    def check(self, n: int) -> None:
        if self.weights is not None and len(self.weights) != n:
            raise UsageError(
                f"There are {n} adapters but {len(self.weights)} weights; give one weight per "
                "adapter."
            )

    def gates(
        self, module: str, experts: Sequence[LowRank], present: Sequence[int], n: int
    ) -> Float64[Tensor, k]:
        """The weights of the experts present: [k], float64."""
        weights = self.weights_of(n)
        return torch.tensor([weights[i] for i in present], dtype=torch.float64)

    def weights_of(self, n: int) -> tuple[float, ...]:
        """The weight of each of n experts."""
        return self.weights if self.weights is not None else (1.0 / n,) * n


def single(adapter: Adapter) -> Composition:
    """One adapter alone, as a composition."""
    return Composition(adapter.name, (adapter,), ConstantGates.ones(1))
