"""The norm of an update relative to the weight that it changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from loraprobe.diagnostics._diagnostic import (
    FactorDiagnostic,
    Figure,
    Key,
    Module,
    Of,
    Statistics,
    Sums,
    base_weight,
)


@dataclass(frozen=True)
class RelativeNorm(FactorDiagnostic):
    """||dW||_F / ||W0||_F; of a whole adapter, over the weights that it adapts.

    Base weights are read one at a time; the model is not built.
    """

    formula: ClassVar[str] = "||dW||_F / ||W0||_F"
    paper: ClassVar[str] = "Hu et al. 2021, arXiv:2106.09685, section 7.3"
    of: ClassVar[Of] = "each"
    needs_base: ClassVar[bool] = True

    def observe(self, module: Module) -> Statistics:
        weight = base_weight(module)
        size = torch.nan if weight is None else float(torch.linalg.vector_norm(weight)) ** 2
        square = [0.0 if u is None else float(u.inner(u)) for u in module.updates]
        touched = [0.0 if u is None else size for u in module.updates]
        return {
            Key(): {
                "square": torch.tensor(square, dtype=torch.float64).clamp_min(0),
                "weight": torch.tensor(touched, dtype=torch.float64),
            }
        }

    def figure(self, sums: Sums) -> Figure:
        return Figure((sums["square"] / sums["weight"]).sqrt())
