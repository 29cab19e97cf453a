"""What the elementwise methods share: a density, an election; their three elementary steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch

from loraprobe.merging._method import Deltas, Matrix, MergeMethod, Weights

Election = Literal["total", "frequency"]
Variant = Literal["peft", "mergekit"]

# Entries of all adapters that an elementwise step holds at once, so that its temporaries stay
# small beside the deltas and in the cache.
BLOCK = 1 << 18


@dataclass(frozen=True)
class SparseMethod(MergeMethod):
    """A method that keeps a share of the entries. What it does to a lone adapter is no identity."""

    density: float = 0.5

    laws: ClassVar[frozenset[str]] = frozenset({"order", "gauge", "homogeneity"})

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(
                f"density, the share of entries kept, is above 0 and at most 1, not {self.density}."
            )


@dataclass(frozen=True)
class ElectingMethod(SparseMethod):
    """A sparse method that then elects a sign per entry and averages the entries that carry it."""

    variant: Variant = "peft"
    election: Election = "total"

    def default_weights(self, n: int) -> tuple[float, ...]:
        """1 each: the method divides by the number of agreeing entries itself."""
        return (1.0,) * n


def keep_largest(deltas: Deltas, density: float) -> Deltas:
    """Each delta [n, p, q] with all but its int(density p q) entries of largest magnitude at zero.

    Entries as large as the smallest kept one are kept too, whichever comes first in memory.
    """
    entries = deltas[0].numel()
    dropped = entries - max(1, int(density * entries))
    if dropped == 0:
        return deltas
    pruned = torch.empty_like(deltas)
    for delta, out in zip(deltas, pruned, strict=True):
        # numpy's selection takes a fifth of the time of torch.kthvalue or torch.topk.
        magnitudes = torch.abs(delta, out=out).numpy().reshape(-1)
        magnitudes.partition(dropped)
        threshold = magnitudes[dropped]
        # hardshrink keeps what is strictly larger, and the threshold itself is to stay.
        out.copy_(torch.nn.functional.hardshrink(delta, float(np.nextafter(threshold, 0))))
    return pruned


def keep_at_random(deltas: Deltas, density: float, generators: Sequence[torch.Generator]) -> Deltas:
    """Each delta with entries dropped at random and the rest divided by density (DARE's drop and
    rescale), so that its expectation stays."""
    if density == 1:
        return deltas
    kept = [
        delta * (torch.rand(delta.shape, generator=g, dtype=torch.float32) < density)
        for delta, g in zip(deltas, generators, strict=True)
    ]
    return torch.stack(kept) / density


def elect_and_merge(
    deltas: Deltas, weights: Weights, election: Election, variant: Variant
) -> Matrix:
    """Elect a sign per entry, then average the entries that carry it: TIES' last two steps.

    peft: the sign is that of the sum of the entries (election "total") or of their signs
    ("frequency"); the weighted entries that agree are summed and divided by their *count*.
    mergekit: entries are weighted first, and the sum is divided by the *sum of the weights* of
    those that agree. A tie elects plus. An entry at zero agrees with nobody.
    """
    blocks = deltas.split(max(1, BLOCK // deltas[:, 0].numel()), dim=1)
    return torch.cat([_elect_block(b, weights.to(b), election, variant) for b in blocks])


def _elect_block(deltas: Deltas, weights: Weights, election: Election, variant: Variant) -> Matrix:
    columns = weights[:, None, None]
    weighted = deltas * columns
    voters = weighted if variant == "mergekit" else deltas
    votes = voters.sum(0) if election == "total" else voters.sign().sum(0)
    elected = torch.where(votes >= 0, 1.0, -1.0).to(deltas)
    agree = (voters.sign() == elected).to(deltas)
    total = (weighted * agree).sum(0)
    if variant == "peft":
        return total / agree.sum(0).clamp_min(1)
    share = (agree * columns).sum(0)
    return total / torch.where(share.abs() < 1e-8, 1.0, share)
