"""Draws random adapters with the norms of others, for the control `random-partner`.

Merging with random adapters works nearly as well as with unrelated real ones (arXiv 2602.12323).
If a composition does not beat this control, the partner adds nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from loraprobe.adapters import Adapter, Modules, Source
from loraprobe.composition import change_norm
from loraprobe.errors import BaseError
from loraprobe.lora.lowrank import LowRank

Weigh = Callable[[str], Tensor]  # module path -> W0 [out, in]


def random_partner(adapter: Adapter, seed: int = 0, weight: Weigh | None = None) -> Adapter:
    """A random adapter with the shapes and the per-module Frobenius norms of another.

    The factors are Gaussian, drawn from the seed, the adapter's name and the module's path. They
    are drawn when they are used, so the control needs no memory. The result is a plain LoRA. Of a
    DoRA it has the norm of the whole change of the weight, for which `weight` gives the base's
    weight; if that cannot be read, the norm of the low-rank part. Modules that the other adapter
    replaces whole, and biases, stay as in the base.
    """

    def norm(path: str, update: LowRank) -> float:
        if weight is None or path not in adapter.magnitudes:
            return float(update.norm())
        try:
            W0 = weight(path)
        except BaseError:
            return float(update.norm())
        return change_norm(update, adapter.magnitudes[path], W0)

    def draw(path: str) -> LowRank:
        update = adapter.modules[path].to(torch.float32)
        digest = hashlib.sha256(f"{seed}:{adapter.name}:{path}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        A = torch.randn(update.A.shape, generator=generator)
        B = torch.randn(update.B.shape, generator=generator)
        drawn = LowRank(A, B, 1.0)
        return drawn.scaled(norm(path, update) / float(drawn.norm()))

    return Adapter(
        name=f"random:{adapter.name}",
        source=Source(reference=f"random:{adapter.name}"),
        base_model=adapter.base_model,
        modules=Modules(adapter.layout, draw),
        config=adapter.config,
    )
