"""Seeds of random masks, from the content of an adapter and not from its place in the list."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from loraprobe.lora.lowrank import LowRank

# Projections are rounded to this resolution: coarser than rounding errors, fine enough to tell
# adapters apart.
RESOLUTION = 1024


def generators(updates: Sequence[LowRank], module: str, seed: int) -> list[torch.Generator]:
    """One generator per delta of a module, seeded by seed, module and the direction of the delta.

    The direction is given by three projections u^T dW v / ||dW||_F on fixed random u, v. A change
    of basis or a positive factor does not change them. They are rounded, so that rounding errors
    do not matter either, except for a projection within about 1e-7 of a rounding step.
    """
    return [torch.Generator().manual_seed(_digest(seed, module, u)) for u in updates]


def module_seed(module: str, seed: int) -> int:
    """The seed of what is drawn once per module."""
    return _number(f"{seed}:{module}")


def _digest(seed: int, module: str, update: LowRank) -> int:
    draw = torch.Generator().manual_seed(module_seed(module, 0))
    u = torch.randn(update.out_features, 3, generator=draw, dtype=torch.float64)
    v = torch.randn(update.in_features, 3, generator=draw, dtype=torch.float64)
    exact = update.to(torch.float64)
    projections = ((u.mT @ exact.B).mT * (exact.A @ v)).sum(0) * exact.scaling
    direction = projections / exact.norm().clamp_min(torch.finfo(torch.float64).tiny)
    rounded = (direction * RESOLUTION).round().to(torch.int64).tolist()
    return _number(f"{seed}:{module}:{rounded}")


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
