"""Random adapters of matched norms: what a partner has to be better than.

Merging with random-weight adapters is nearly as good as with unrelated real ones (arXiv
2602.12323), so a composition that does not beat this control owes nothing to its partner.
"""

from __future__ import annotations

import hashlib

import torch

from loraprobe.adapter import Adapter, Modules, Source
from loraprobe.lowrank import LowRank


def random_partner(adapter: Adapter, seed: int = 0) -> Adapter:
    """An adapter with the shapes and the per-module Frobenius norms of another, and random else.

    The factors are Gaussian, drawn from the seed, the adapter's name and the module's path; they
    are drawn when asked for, so the control takes no memory of its own.
    """

    def draw(path: str) -> LowRank:
        update = adapter.modules[path].to(torch.float32)
        digest = hashlib.sha256(f"{seed}:{adapter.name}:{path}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        A = torch.randn(update.A.shape, generator=generator)
        B = torch.randn(update.B.shape, generator=generator)
        drawn = LowRank(A, B, 1.0)
        return drawn.scaled(float(update.norm() / drawn.norm()))

    return Adapter(
        name=f"random:{adapter.name}",
        source=Source(reference=f"random:{adapter.name}"),
        base_model=adapter.base_model,
        modules=Modules(adapter.layout, draw),
        config=adapter.config,
    )
