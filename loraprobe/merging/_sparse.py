"""What the elementwise methods share: keep the largest, keep at random, agree on a sign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Election = Literal["total", "frequency"]
Variant = Literal["peft", "mergekit"]


def keep_largest(deltas: Tensor, density: float) -> Tensor:
    """Each delta [n, p, q] with all but its int(density p q) entries of largest magnitude at zero.

    Entries as large as the smallest kept one are kept too, whichever comes first in memory.
    """
    entries = deltas[0].numel()
    dropped = entries - max(1, int(density * entries))
    if dropped == 0:
        return deltas
    magnitudes = deltas.abs()
    pruned = []
    for delta, magnitude in zip(deltas, magnitudes, strict=True):
        threshold = magnitude.flatten().kthvalue(dropped + 1).values
        pruned.append(delta.masked_fill(magnitude < threshold, 0))
    return torch.stack(pruned)


def keep_at_random(deltas: Tensor, density: float, generators: Sequence[torch.Generator]) -> Tensor:
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
    deltas: Tensor, weights: Tensor, election: Election, variant: Variant
) -> Tensor:
    """Elect a sign per entry, then average the entries that carry it: TIES' last two steps.

    peft: the sign is that of the sum of the entries (election "total") or of their signs
    ("frequency"); the weighted entries that agree are summed and divided by their *count*.
    mergekit: entries are weighted first, and the sum is divided by the *sum of the weights* of
    those that agree. A tie elects plus. An entry at zero agrees with nobody.
    """
    weighted = deltas * weights.to(deltas)[:, None, None]
    voters = weighted if variant == "mergekit" else deltas
    votes = voters.sum(0) if election == "total" else voters.sign().sum(0)
    elected = torch.where(votes >= 0, 1, -1).to(deltas)
    agree = (voters.sign() == elected).to(deltas)
    total = (weighted * agree).sum(0)
    if variant == "peft":
        return total / agree.sum(0).clamp_min(1)
    share = (agree * weights.to(deltas)[:, None, None]).sum(0)
    return total / torch.where(share.abs() < 1e-8, torch.ones_like(share), share)
