"""Diagnostics that compare updates with the base's weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraprobe.diagnostics._diagnostic import (
    FactorDiagnostic,
    FigureValue,
    Module,
    Statistics,
    Sums,
    single,
)


@dataclass(frozen=True)
class RelativeNorm(FactorDiagnostic):
    """||dW||_F / ||W0||_F; of a whole adapter, over the weights that it adapts.

    Base weights are read one at a time; the model is not built.
    """

    formula = "||dW||_F / ||W0||_F"
    paper = "Hu et al. 2021, arXiv:2106.09685, section 7.3"
    of = "each"
    needs_base = True

    def observe(self, module: Module) -> Statistics:
        weight = module.base_weight()
        size = torch.nan if weight is None else float(torch.linalg.vector_norm(weight)) ** 2
        exact = [None if u is None else u.to(torch.float64) for u in module.updates]
        square = [0.0 if u is None else float(u.inner(u)) for u in exact]
        touched = [0.0 if u is None else size for u in module.updates]
        return single(
            square=torch.tensor(square, dtype=torch.float64).clamp_min(0),
            weight=torch.tensor(touched, dtype=torch.float64),
        )

    def figure(self, sums: Sums) -> FigureValue:
        return FigureValue((sums["square"] / sums["weight"]).sqrt())


@dataclass(frozen=True)
class IntruderDimensions(FactorDiagnostic):
    """How many of the top k left singular vectors of W0 + dW resemble none of W0's.

    A vector is an intruder if its largest |cosine| to any left singular vector of W0 is below
    the threshold. The whole adapter's value is the sum over its modules. Every module needs a
    dense SVD of W0 and one of each W0 + dW (minutes for a large model), hence on demand only.
    """

    k: int = 10
    threshold: float = 0.5

    formula = "#{j <= k: max_i |<u_j(W0 + dW), u_i(W0)>| < threshold}"
    paper = "Shuttleworth et al. 2024, arXiv:2410.21228"
    of = "each"
    needs_base = True
    on_demand = True

    def __post_init__(self) -> None:
        if self.k < 1 or not 0 < self.threshold <= 1:
            raise ValueError("k must be at least 1 and threshold between 0 and 1.")

    def observe(self, module: Module) -> Statistics:
        weight = module.base_weight()
        own = None if weight is None else torch.linalg.svd(weight, full_matrices=False).U
        counts = torch.zeros(len(module.updates), dtype=torch.float64)
        for i, update in enumerate(module.updates):
            if update is None:
                continue
            delta = update.to(torch.float32).delta()
            if weight is None or own is None or weight.shape != delta.shape:
                counts[i] = torch.nan
            elif torch.isfinite(delta).all():
                counts[i] = self._intruders(own, weight + delta)
        return single(intruders=counts)

    def _intruders(self, own: Tensor, tuned: Tensor) -> int:
        top = torch.linalg.svd(tuned, full_matrices=False).U[:, : self.k]
        return int(((own.mT @ top).abs().amax(0) < self.threshold).sum())

    def figure(self, sums: Sums) -> FigureValue:
        return FigureValue(sums["intruders"])
