"""The error of averaging A and B separately."""

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
from loraprobe.lora.grams import GramMatrices, own_blocks


@dataclass(frozen=True)
class CrossTerms(GramDiagnostic):
    """Relative error, against the exact mean of two updates, of averaging their factors separately.

    peft's combination_type "linear" does that with weights 1/2: it adds sqrt(s_i/2) A_i and
    sqrt(s_i/2) B_i, so that the product is the exact mean plus half of sqrt(s1 s2) (B1 A2 + B2 A1).
    The value is the norm of these cross terms over the norm of the exact mean: 0 is exact, at 1 the
    error is as large as the mean. The figure depends on the basis in which the factors are stored,
    because the averaging does. None where ranks differ, since such factors cannot be added.
    """

    formula: ClassVar[str] = "sqrt(s1 s2) ||B1 A2 + B2 A1|| / ||s1 B1 A1 + s2 B2 A2||"
    paper: ClassVar[str] = "-"
    of: ClassVar[Of] = "pair"
    basis_free: ClassVar[bool] = False

    def observe(self, grams: GramMatrices) -> Statistics:
        own_in, own_out = own_blocks(grams.grams_in), own_blocks(grams.grams_out)
        straight = torch.einsum("mirs,mjrs->mij", own_out, own_in)
        mixed = torch.einsum("mirjs,mjris->mij", grams.grams_out, grams.grams_in)
        product = grams.scaling[:, :, None] * grams.scaling[:, None, :]
        excess = product.abs() * (straight + straight.mT) + 2 * product * mixed
        ranks_differ = grams.both & (grams.rank[:, :, None] != grams.rank[:, None, :])
        first, second = per_pair(grams.square)
        return {
            Key(): {
                "excess": excess.masked_fill(ranks_differ, torch.nan),
                "exact": first + second + 2 * grams.inner,
            }
        }

    def figure(self, sums: Sums) -> Figure:
        return Figure((sums["excess"].clamp_min(0) / sums["exact"].clamp_min(0)).sqrt())
