"""How wrong it would be to average A and B apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from loraprobe.diagnostics._diagnostic import Figure, Key, Of, OfGrams, Statistics, Sums, per_pair
from loraprobe.lora.grams import GramMatrices, own_blocks


@dataclass(frozen=True)
class CrossTerms(OfGrams):
    """Relative error, against the exact mean of two updates, of averaging their factors apart.

    That is what peft's combination_type "linear" does with weights 1/2: it adds sqrt(s_i/2) A_i
    and sqrt(s_i/2) B_i, so that the product is the exact mean plus half of
    sqrt(s1 s2) (B1 A2 + B2 A1). The value is the norm of that surplus over the norm of the exact
    mean: 0 is right, 1 as wrong as the mean is large. Unlike every other figure about deltas it
    depends on the basis in which the factors are stored, because what it describes does. None
    where ranks differ: factors cannot be added then.
    """

    formula: ClassVar[str] = "sqrt(s1 s2) ||B1 A2 + B2 A1|| / ||s1 B1 A1 + s2 B2 A2||"
    paper: ClassVar[str] = "-"
    of: ClassVar[Of] = "pair"
    basis_free: ClassVar[bool] = False

    def observe(self, joint: GramMatrices) -> Statistics:
        own_in, own_out = own_blocks(joint.grams_in), own_blocks(joint.grams_out)
        straight = torch.einsum("mirs,mjrs->mij", own_out, own_in)
        mixed = torch.einsum("mirjs,mjris->mij", joint.grams_out, joint.grams_in)
        product = joint.scaling[:, :, None] * joint.scaling[:, None, :]
        surplus = product.abs() * (straight + straight.mT) + 2 * product * mixed
        ranks_differ = joint.both & (joint.rank[:, :, None] != joint.rank[:, None, :])
        first, second = per_pair(joint.square)
        return {
            Key(): {
                "surplus": surplus.masked_fill(ranks_differ, torch.nan),
                "exact": first + second + 2 * joint.inner,
            }
        }

    def figure(self, sums: Sums) -> Figure:
        return Figure((sums["surplus"].clamp_min(0) / sums["exact"].clamp_min(0)).sqrt())
