"""The energy of the sum of two updates, relative to that of both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from loraprobe.diagnostics._diagnostic import (
    Figure,
    GramDiagnostic,
    Key,
    Of,
    Statistics,
    Sums,
    per_pair,
)
from loraprobe.lora.grams import GramMatrices


@dataclass(frozen=True)
class EnergyRatio(GramDiagnostic):
    """||dW1 + dW2||^2 / (||dW1||^2 + ||dW2||^2), between 0 and 2.

    1 for orthogonal updates (chance); below 1 they partly cancel, above 1 they add up.
    """

    formula: ClassVar[str] = "||dW1 + dW2||^2 / (||dW1||^2 + ||dW2||^2)"
    paper: ClassVar[str] = "-"
    of: ClassVar[Of] = "pair"

    def observe(self, grams: GramMatrices) -> Statistics:
        first, second = per_pair(grams.square)
        return {Key(): {"inner": grams.inner, "apart": first + second}}

    def figure(self, sums: Sums) -> Figure:
        value = 1 + 2 * sums["inner"] / sums["apart"]
        return Figure(value, chance=torch.ones_like(value))
