"""What is left of two updates when they are added."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from loraprobe.diagnostics._diagnostic import Figure, Key, Of, OfGrams, Statistics, Sums, per_pair
from loraprobe.lora.grams import GramMatrices


@dataclass(frozen=True)
class EnergyRatio(OfGrams):
    """||dW1 + dW2||^2 / (||dW1||^2 + ||dW2||^2), between 0 and 2.

    1 is what updates give that do not meet (chance); below 1 they cancel, above 1 they add up.
    """

    formula: ClassVar[str] = "||dW1 + dW2||^2 / (||dW1||^2 + ||dW2||^2)"
    paper: ClassVar[str] = "-"
    of: ClassVar[Of] = "pair"

    def observe(self, joint: GramMatrices) -> Statistics:
        first, second = per_pair(joint.square)
        return {Key(): {"inner": joint.inner, "apart": first + second}}

    def figure(self, sums: Sums) -> Figure:
        value = 1 + 2 * sums["inner"] / sums["apart"]
        return Figure(value, chance=torch.ones_like(value))
