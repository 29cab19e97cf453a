"""What is in a merged adapter, module by module, in factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import permutations

import torch

from loraprobe.adapters import Adapter, natural
from loraprobe.base import Base
from loraprobe.compatibility import aligned
from loraprobe.errors import AdapterError
from loraprobe.extensions.files.contents.records import (
    Contents,
    Difference,
    ModuleContents,
    Rest,
    dtype_name,
    snapped,
)
from loraprobe.lora.lowrank import LowRank
from loraprobe.records import Progress


def of_adapter(
    made: Adapter, base: Base | None, adapters: Sequence[Adapter], progress: Progress | None
) -> Contents:
    """What is in a merged adapter, module by module, in factors."""
    for one in (made, *adapters):
        if one.has_more_than_factors:
            raise AdapterError(
                f"{one.name} has more than LoRA factors (DoRA, whole modules, biases or tokens), "
                "which verify compares in a full model alone; merge it into its base."
            )
    target, *sources = aligned([made, *adapters], base)
    paths = sorted(dict.fromkeys(p for one in (target, *sources) for p in one.layout), key=natural)
    parts, differences = list[ModuleContents](), list[Difference]()
    for done, path in enumerate(paths, 1):
        own = target.modules.get(path)
        updates = [one.modules.get(path) for one in sources]
        if not any(updates) and own is not None:
            differences.append(Difference(path, math.inf))
        else:
            parts.append(_module(path, own, updates))
        if progress:
            progress("verify", done, len(paths))
    return Contents(
        (), None, tuple(parts), 0, tuple(differences), (), dtype_name(made.dtype), full_model=False
    )


def _module(path: str, made: LowRank | None, updates: Sequence[LowRank | None]) -> ModuleContents:
    """How one module of a merged adapter was made of updates, None where an adapter lacks it."""
    n, errors = len(updates), (0.0,) * len(updates)
    present = [at for at, update in enumerate(updates) if update is not None]
    known = [update.to(torch.float64) for update in updates if update is not None]
    if made is None or made.rank == 0:
        return ModuleContents(
            path, tuple(0.0 if at in present else None for at in range(n)), errors
        )
    if any((u.out_features, u.in_features) != (made.out_features, made.in_features) for u in known):
        nothing = tuple(0.0 if at in present else None for at in range(n))
        return ModuleContents(path, nothing, errors, missing=True)
    T = made.to(torch.float64)
    noise2 = _factor_noise2(made)
    weights, rest = _in_factors(T, known)
    cut, form = 1.0, None
    norm = float(T.norm())
    known_norm = float(stacked(known, weights).norm())
    floor2 = noise2 + (1e-5 * max(norm, known_norm)) ** 2
    explained = rest**2 <= 4 * floor2
    if not explained:
        U, V = torch.linalg.qr(T.B).Q, torch.linalg.qr(T.A.mT).Q
        inside = [LowRank((u.A @ V) @ V.mT, U @ (U.mT @ u.B), u.scaling) for u in known]
        own, left = _in_factors(T, inside)
        if left**2 <= 4 * floor2:
            weights, rest, explained = own, left, True
            cut = norm / max(float(stacked(known, own).norm()), 1e-300)
    if not explained and (crossed := crossed_of(known)):
        _, left = _in_factors(T, [*known, *crossed])
        form = Rest(0.0, False, 0, 0.0, False, left**2 <= 4 * floor2)
    spread: list[float | None] = [None] * n
    for at, weight in zip(present, weights, strict=True):
        spread[at] = snapped(weight, 1e-4)
    return ModuleContents(
        path,
        tuple(spread),
        errors,
        norm,
        math.sqrt(noise2),
        0.0 if explained else rest,
        explained,
        form=form,
        cut=cut,
    )


def _in_factors(made: LowRank, updates: Sequence[LowRank]) -> tuple[list[float], float]:
    """The least-squares weights of updates for another one, and the norm of the rest."""
    gram = torch.tensor([[float(a.inner(b)) for b in updates] for a in updates]).double()
    onto = torch.tensor([float(made.inner(one)) for one in updates]).double()
    weights = (torch.linalg.pinv(gram, rtol=1e-12, hermitian=True) @ onto).tolist()
    rest = stacked([made, *updates], [1.0, *(-w for w in weights)])
    R = torch.linalg.qr(rest.B, mode="r").R @ torch.linalg.qr(rest.A.mT, mode="r").R.mT
    return weights, float(R.norm())


def stacked(updates: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """The weighted sum of updates, in factors."""
    pairs = list(zip(updates, weights, strict=True))
    return LowRank(
        torch.cat([u.A for u, _ in pairs]), torch.cat([u.B * (u.scaling * w) for u, w in pairs], 1)
    )


def _factor_noise2(update: LowRank) -> float:
    """The energy that rounding both factors to their dtype adds to their product, on average.

    An entry x is off by a uniform error of variance (spacing of x)^2 / 12, and spacings are 0.75
    of eps |x| on average.
    """
    eps = torch.finfo(update.A.dtype).eps if update.A.dtype.is_floating_point else 0.0
    A2, B2 = (factor.double().square() for factor in (update.A, update.B))
    return 2 * float(B2.sum(0) @ A2.sum(1)) * update.scaling**2 * (0.75 * eps) ** 2 / 12


def crossed_of(updates: Sequence[LowRank]) -> list[LowRank]:
    """B of one update times A of another, for all pairs of one rank.

    A mean of factors in place of a mean of products has these.
    """
    return [
        LowRank(one.A, other.B, math.sqrt(abs(one.scaling * other.scaling)))
        for one, other in permutations(updates, 2)
        if one.rank == other.rank
    ]
