"""Whether two adapters were initialised with the same A."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from loraprobe.diagnostics._diagnostic import Figure, GramDiagnostic, Key, Of, Statistics, Sums
from loraprobe.lora.grams import GramMatrices


@dataclass(frozen=True)
class SharedInitialisation(GramDiagnostic):
    """Mean cosine of row k of one A with row k of the other A, over components and modules.

    A is random at the start of training and changes little. Adapters that were initialised with one
    seed keep similar rows (values near 1), and then `subspace_overlap` on the side "in" shows the
    seed and not the skill. The figure uses A as stored, so it depends on the basis intentionally.
    With unequal ranks the first rows are compared. Chance is the root mean square for independent
    random rows.
    """

    formula: ClassVar[str] = "mean_k cos(A1[k], A2[k])"
    paper: ClassVar[str] = "-"
    of: ClassVar[Of] = "pair"
    basis_free: ClassVar[bool] = False

    def observe(self, grams: GramMatrices) -> Statistics:
        rows = grams.grams_in.diagonal(dim1=2, dim2=4)  # [m, n, n, r]: <A_i[k], A_j[k]>
        lengths = rows.diagonal(dim1=1, dim2=2).mT.clamp_min(0).sqrt()  # [m, n, r]
        norms = lengths[:, :, None] * lengths[:, None, :]
        cosines = (rows / norms).where(norms > 0, torch.zeros_like(rows))
        count = torch.minimum(grams.rank[:, :, None], grams.rank[:, None, :]).to(cosines)
        width = grams.shape[:, :, None, 1].to(cosines).clamp_min(1)
        return {Key(): {"cosines": cosines.sum(-1), "components": count, "variance": count / width}}

    def figure(self, sums: Sums) -> Figure:
        count = sums["components"]
        return Figure(sums["cosines"] / count, chance=sums["variance"].sqrt() / count)
