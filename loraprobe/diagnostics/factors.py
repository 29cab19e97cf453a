"""Diagnostics from the factors of a module, and from the base's weight."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from loraprobe.diagnostics._diagnostic import (
    FactorDiagnostic,
    FigureValue,
    Module,
    Statistics,
    Sums,
    one_figure,
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
        return one_figure(
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
        directions = None if weight is None else torch.linalg.svd(weight, full_matrices=False).U
        counts = torch.zeros(len(module.updates), dtype=torch.float64)
        for i, update in enumerate(module.updates):
            if update is None:
                continue
            delta = update.to(torch.float32).delta()
            if weight is None or directions is None or weight.shape != delta.shape:
                counts[i] = torch.nan
            elif torch.isfinite(delta).all():
                top = torch.linalg.svd(weight + delta, full_matrices=False).U[:, : self.k]
                counts[i] = ((directions.mT @ top).abs().amax(0) < self.threshold).sum()
        return one_figure(intruders=counts)

    def figure(self, sums: Sums) -> FigureValue:
        return FigureValue(sums["intruders"])


@dataclass(frozen=True)
class SignConflict(FactorDiagnostic):
    """Share of the entries with different signs, of those where both deltas are not zero.

    Chance is 1/2. Each module is sampled at `entries` places, drawn from the seed and the module's
    path and the same for all adapters; modules count by their number of entries. The standard error
    is that of this stratified sample.
    """

    entries: int = 256

    formula = "#{dW1_ij dW2_ij < 0} / #{dW1_ij dW2_ij != 0}"
    paper = "Yadav et al. 2023 (TIES), arXiv:2306.01708"
    of = "pair"

    def __post_init__(self) -> None:
        if self.entries < 2:
            raise ValueError("entries must be at least 2.")

    def observe(self, module: Module) -> Statistics:
        shapes = {(u.out_features, u.in_features) for u in module.updates if u is not None}
        out, in_ = max(shapes)
        signs = self._signs(module)
        products = signs @ signs.mT
        both = signs.abs() @ signs.abs().mT
        size = float(out * in_)
        c, z = (both - products) / 2 / self.entries, both / self.entries
        sampled = size**2 / self.entries
        return one_figure(
            conflict=size * c,
            active=size * z,
            # Variances and covariance of the two sampled counts, for the ratio's error.
            vcc=sampled * c * (1 - c),
            vcz=sampled * c * (1 - z),
            vzz=sampled * z * (1 - z),
        )

    def figure(self, sums: Sums) -> FigureValue:
        value = sums["conflict"] / sums["active"]
        variance = sums["vcc"] - 2 * value * sums["vcz"] + value.square() * sums["vzz"]
        stderr = variance.clamp_min(0).sqrt() / sums["active"]
        return FigureValue(value, chance=torch.full_like(value, 0.5), stderr=stderr)

    def _signs(self, module: Module) -> Tensor:
        """Signs at the sampled places: [n, entries]."""
        digest = hashlib.sha256(f"{module.seed}:{module.path}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        places = torch.rand(2, self.entries, generator=generator, dtype=torch.float64)
        signs = torch.zeros(len(module.updates), self.entries, dtype=torch.float64)
        for i, update in enumerate(module.updates):
            if update is not None:
                rows = (places[0] * update.out_features).long()
                columns = (places[1] * update.in_features).long()
                B = update.B.index_select(0, rows).double()
                A = update.A.index_select(1, columns).double()
                signs[i] = torch.sign((B * A.mT).sum(1) * update.scaling)
        return signs
