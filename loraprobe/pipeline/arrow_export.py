"""Whether peft's own Arrow computes the same as a composition, and what it needs for that.

peft's `create_arrow_model` (0.21) routes over PEFT directories by Arrow's formula. It finds an
expert's prototype by 15 power iterations on dW^T dW from a random start, which rarely reach the
right singular vector of a trained adapter. The exact prototypes are therefore stored, and a few
lines of the card put them into peft's layers before the first forward pass.

peft's Arrow also needs equal targets and ranks, linear layers only and plain factors. It puts its
router on every module of the base whose name ends like a target's, so all of those must be adapted.
Otherwise it cannot express the composition.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loraprobe.base import Base
from loraprobe.composition import Composition
from loraprobe.routing.spectral import Arrow, prototype


def arrow_config(composition: Composition) -> dict[str, Any]:
    """The keyword arguments of peft.ArrowConfig, for a composition that peft can express."""
    router = composition.router
    assert isinstance(router, Arrow)
    return {
        "top_k": min(router.top_k, len(composition.experts)),
        "router_temperature": router.temperature,
        "rng_seed": 0,
    }


def why_not_peft(composition: Composition, base: Base | None = None) -> str | None:
    """Why peft's Arrow cannot compute the same, in one sentence; None where it can."""
    return (
        _why_not_router(composition)
        or _why_not_experts(composition)
        or _why_not_base(composition, base)
    )


def _why_not_router(composition: Composition) -> str | None:
    router = composition.router
    if not isinstance(router, Arrow):
        return f"its router is {router.name}, and peft has only Arrow."
    for option, needed in (("normalize", False), ("per", "token")):
        given = getattr(router, option, needed)
        if given != needed:
            return f"peft's Arrow has no {option}={given}."
    if not math.isfinite(router.temperature):
        return "peft's Arrow needs a finite temperature."
    return None


def _why_not_experts(composition: Composition) -> str | None:
    first = composition.experts[0]
    for expert in composition.experts:
        extras = [extra for extra in expert.extras if extra.kind != "base_copy"]
        if extras:
            return f"expert {expert.name} holds {extras[0]} beside its factors."
        if set(expert.layout) != set(first.layout):
            path = min(set(expert.layout) ^ set(first.layout))
            return f"{path} is adapted by only one of {first.name} and {expert.name}."
        for path, info in expert.layout.items():
            if info.kind not in ("linear", "conv1d"):
                return f"{path} is of kind {info.kind}, and peft's Arrow serves linear layers."
            if info.rank != first.layout[path].rank:
                return (
                    f"the ranks of {path} differ ({first.layout[path].rank} in {first.name}, "
                    f"{info.rank} in {expert.name})."
                )
    return None


def _why_not_base(composition: Composition, base: Base | None) -> str | None:
    """Checks the other modules of the base: peft targets modules by the last part of their path."""
    if base is None:
        return (
            "without the base (--base) nobody knows which other modules its router would be put on."
        )
    adapted = set(composition.paths)
    names = {path.rpartition(".")[2] for path in adapted}
    others = [p for p in base.weights if p.rpartition(".")[2] in names and p not in adapted]
    if others:
        return f"its router would be put on {others[0]} too, which no expert adapts."
    return None


@torch.no_grad()
def prototypes(composition: Composition) -> dict[str, Float[Tensor, "n in"]]:
    """Module path -> the experts' exact prototypes [n, in], in their order, float32.

    The sign of a prototype has no meaning; here its largest entry is positive.
    """
    found = {}
    for path in composition.paths:
        rows = [prototype(e.modules[path].to(torch.float32)) for e in composition.experts]
        vectors = torch.stack(rows)
        largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
        found[path] = torch.where(largest < 0, -vectors, vectors)
    return found
