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
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loraprobe.base import Base
from loraprobe.composition import Composition
from loraprobe.routing.arrow import Arrow, prototype


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
    return next(_reasons(composition, base), None)


def _reasons(composition: Composition, base: Base | None) -> Iterator[str]:
    """The reasons; each presumes that those before it do not hold."""
    router, first = composition.router, composition.experts[0]
    if not isinstance(router, Arrow):
        yield f"its router is {router.name}, and peft has only Arrow."
        return
    for option, needed in (("normalize", False), ("per", "token")):
        given = getattr(router, option, needed)
        if given != needed:
            yield f"peft's Arrow has no {option}={given}."
    if not math.isfinite(router.temperature):
        yield "peft's Arrow needs a finite temperature."
    for expert in composition.experts:
        for extra in expert.extras:
            if extra.kind != "base_copy":
                yield f"expert {expert.name} holds {extra} beside its factors."
        for path in sorted(set(expert.layout) ^ set(first.layout)):
            yield f"{path} is adapted by only one of {first.name} and {expert.name}."
        for path, info in expert.layout.items():
            if info.kind not in ("linear", "conv1d"):
                yield f"{path} is of kind {info.kind}, and peft's Arrow serves linear layers."
            if info.rank != (rank := first.layout[path].rank):
                ranks = f"{rank} in {first.name}, {info.rank} in {expert.name}"
                yield f"the ranks of {path} differ ({ranks})."
    if base is None:
        yield (
            "without the base (--base) nobody knows which other modules its router would be put on."
        )
        return
    adapted = set(composition.paths)
    names = {path.rpartition(".")[2] for path in adapted}  # by which peft targets modules
    for path in base.weights:
        if path.rpartition(".")[2] in names and path not in adapted:
            yield f"its router would be put on {path} too, which no expert adapts."


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
