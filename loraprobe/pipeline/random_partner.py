"""Random adapters of matched norms, the control of a partner.

Merging with random adapters is nearly as good as with unrelated real ones (arXiv 2602.12323), so in
a composition that does not beat this control the partner adds nothing.
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

    The factors are Gaussian, drawn from the seed, the adapter's name and the module's path; they
    are drawn when asked for, so the control takes no memory of its own. It is a plain LoRA also
    where the other is a DoRA: its norm is then that of the DoRA's whole change of the weight,
    which `weight` gives (of its low-rank part, where the base's weight cannot be read). Modules
    that the other replaces whole, and biases, stay as the base has them.
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
