"""Whether peft's own Arrow computes the same as a composition, and what it needs for that.

peft's `create_arrow_model` (0.21) routes over PEFT directories by Arrow's formula. It finds an
expert's prototype by 15 power iterations on dW^T dW from a random start; loraprobe uses the exact
right singular vector. Each iteration reduces the other directions by (sigma_2 / sigma_1)^2, so
after 15 of them

    tan(angle) <= (sigma_2 / sigma_1)^30 * tan(angle of the start)

For every expert and module two things are checked: this factor is at most 1e-8, so that a start
that is a thousand times nearer to the other directions does no harm; and peft's iteration from the
start of the stored seed, on the CPU, ends within 1e-5 of the exact vector. Trained adapters seldom
pass in every module. Then the exact prototypes are stored too, and a few lines of the card put them
into peft's layers before the first forward pass.

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
from loraprobe.lora.lowrank import LowRank
from loraprobe.routing.arrow import Arrow, prototype

ITERATIONS = 15
EPSILON = 1e-8  # added to the length that an iterate is divided by
FACTOR = 1e-8
CLOSE = 1e-5
SEED = 0


def arrow_config(composition: Composition) -> dict[str, Any]:
    """The keyword arguments of peft.ArrowConfig, for a composition that peft can express."""
    router = composition.router
    assert isinstance(router, Arrow)
    return {
        "top_k": min(router.top_k, len(composition.experts)),
        "router_temperature": router.temperature,
        "rng_seed": SEED,
    }


@torch.no_grad()
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


@torch.no_grad()
def missed_prototype(composition: Composition) -> str | None:
    """The first prototype that peft finds inexactly, in one sentence; None if there is none."""
    for expert in composition.experts:
        for path, stored in expert.modules.items():
            update = stored.to(torch.float32)
            S = update.to(torch.float64).singular_values()
            if S[0] == 0:
                continue  # both have a prototype of zero
            share = float(S[1] / S[0]) if len(S) > 1 else 0.0
            if share ** (2 * ITERATIONS) > FACTOR:
                return (
                    f"in {path} of expert {expert.name} the second singular value is {share:.2f} "
                    f"of the first, from which its {ITERATIONS} power iterations do not reach the "
                    "prototype"
                )
            exact, found = prototype(update), power_iteration(update)
            error = float(torch.minimum((found - exact).norm(), (found + exact).norm()))
            if not error <= CLOSE:
                return (
                    f"in {path} of expert {expert.name} its prototype misses the exact one by "
                    f"{error:.1e}"
                )
    return None


def power_iteration(update: LowRank, seed: int = SEED) -> Float[Tensor, "in"]:
    """The vector [in] that peft's Arrow takes for a prototype, on the CPU in float32.

    It starts from a Gaussian vector of the seed. Each step applies (BA)^T (BA) without the scaling
    and divides by the length plus EPSILON.
    """
    A, B = update.A.to(torch.float32), update.B.to(torch.float32)
    gram = B.mT @ B
    start = torch.randn(A.shape[1], generator=torch.Generator().manual_seed(seed))
    v = start / (start.norm() + EPSILON)
    for _ in range(ITERATIONS):
        v = A.mT @ (gram @ (A @ v))
        v = v / (v.norm() + EPSILON)
    return v
