"""sce: select by variance, calculate weights, erase the minority's sign."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from loraprobe.merging._method import Deltas, Generators, Matrix, MergeMethod, Weights
from loraprobe.merging._selection import Selection, fuse, in_blocks, magnitudes_at
from loraprobe.merging._sparse import elect


@dataclass(frozen=True)
class Sce(MergeMethod):
    """SCE: weight each adapter by its energy where the adapters differ most, then elect signs.

    Select: of the entries whose variance over the adapters is not zero, the int(select_topk count)
    of largest variance (all, by default, as in both codes below). Calculate: the weight of an
    adapter is its share of the squares of the selected entries, so given weights are not used.
    Erase: the sign of the plain sum is elected per entry (a tie elects plus), and the entries that
    carry it are averaged by these weights.

    There are two definitions: in `variant="mergekit"` the entries that were not selected are zero
    in the result too; in the code of its authors (`variant="authors"`, FuseChat) the selection
    decides only the weights and every entry is fused. They agree at select_topk = 1.

    Differences to mergekit: it uses equal weights if the mean squares of the deltas sum to less
    than 1e-6, which is so in all examined modules of five of six published GPT-2 adapters, and
    divides by at least 1e-6; here the unit of the deltas does not matter. Where no entry differs (a
    single adapter, equal ones) all are selected here and none there. All entries with as much
    variance as a selected one are selected.
    """

    select_topk: float = 1.0
    variant: Literal["mergekit", "authors"] = "mergekit"

    laws = frozenset({"identity", "order", "gauge", "homogeneity"})
    takes_weights = False
    formula = (
        "dW = sum over {i: sign(S_i) = sign(sum S)} of e_i S_i / sum of these e_i, "
        "e_i = ||S_i||^2, S_i = dW_i where the variance is among the largest"
    )
    paper = "Wan et al. 2024, FuseChat (arXiv 2408.07990)"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.select_topk <= 1:
            raise ValueError(
                "select_topk, the share of entries selected, is above 0 and at most 1, not "
                f"{self.select_topk}."
            )

    def __call__(self, deltas: Deltas, weights: Weights, generators: Generators = ()) -> Matrix:
        selection = largest_variance(deltas, self.select_topk)
        energies = shares(deltas, selection)
        fused: Selection = selection if self.variant == "mergekit" else iter
        return fuse(deltas, fused, partial(elect, weights=energies, voters="plain"))


def largest_variance(deltas: Deltas, share: float) -> Selection:
    """Keep the entries of largest variance over the adapters, the same entries of each adapter."""
    if share == 1:
        return iter
    variances = torch.cat([variance(block) for block in in_blocks(deltas)])
    count = int(torch.count_nonzero(variances))
    if count == 0:
        return iter
    place = variances.numel() - max(1, int(share * count))
    least = float(magnitudes_at(variances.flatten().numpy(), [place])[0])
    return lambda blocks: (block * (variance(block) >= least) for block in blocks)


def variance(deltas: Deltas) -> Matrix:
    """The variance of each entry over the adapters, divided by n: [n, p, q] -> [p, q].

    Computed from the differences to the first adapter, so it is exactly 0 where all are equal.
    torch.var over a short first dimension takes ten times as long.
    """
    apart = deltas - deltas[0]
    return (apart - apart.mean(0)).square().mean(0)


def shares(deltas: Deltas, selection: Selection) -> Float64[Tensor, n]:
    """Each adapter's share of the sum of squares of the selected entries: [n]."""
    norm = partial(torch.linalg.vector_norm, dim=(1, 2), dtype=torch.float64)
    energies = sum(norm(block).square() for block in selection(in_blocks(deltas)))
    assert isinstance(energies, Tensor)
    total = energies.sum()
    return energies / total if total > 0 else torch.full_like(energies, 1 / len(energies))
