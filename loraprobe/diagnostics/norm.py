"""Frobenius norm of the update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from loraprobe.diagnostics._diagnostic import Figure, GramDiagnostic, Key, Of, Statistics, Sums
from loraprobe.lora.grams import GramMatrices


@dataclass(frozen=True)
class Norm(GramDiagnostic):
    """How much an adapter changes: ||dW||_F of a module, sqrt(sum ||dW||_F^2) of the whole."""

    formula: ClassVar[str] = "||dW||_F = s sqrt(sum((B^T B) * (A A^T)))"
    paper: ClassVar[str] = "-"
    of: ClassVar[Of] = "each"

    def observe(self, grams: GramMatrices) -> Statistics:
        return {Key(): {"square": grams.square}}

    def figure(self, sums: Sums) -> Figure:
        return Figure(sums["square"].sqrt())
