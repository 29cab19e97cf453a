"""The checks of a merge. Each error names the cure, and nothing is dropped silently."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import combinations

import torch
from jaxtyping import Float64
from torch import Tensor

from loraprobe.adapters import Adapter, Extra, copied_weight, same_weight
from loraprobe.adapters.experts import conflict, owner_of, stacks
from loraprobe.errors import AdapterError, CompatibilityError, UnsupportedAdapter, UsageError
from loraprobe.formatting import listing
from loraprobe.lora.lowrank import same_update
from loraprobe.lora.spaces import space_named
from loraprobe.merging._compress import SideBySide
from loraprobe.merging._method import FactorMethod, LinearMethod, MergeMethod
from loraprobe.merging._plan import MergePlan
from loraprobe.records import Issue
from loraprobe.registry import name_of

LARGEST_WEIGHT = 1e6
LARGEST_NORM = 1e30  # of one rank of dW; times a weight it still fits into float32


def weights_for(
    method: MergeMethod, given: Sequence[float] | None, n: int
) -> tuple[tuple[float, ...], list[Issue]]:
    """The weights to use, as given or the method's own, and a note if given ones are not used."""
    weights, notes = method.default_weights(n), []
    if given is not None:
        _check_weights(given, n)
        if method.takes_weights:
            weights = tuple(map(float, given))
        else:
            message = f"{name_of(method)} has weights of its own; those given were not used."
            cure = "Use task_arithmetic to weight adapters."
            notes = [Issue("note", "weights-ignored", (), message, cure)]
    method.check(weights)
    return weights, notes


def _check_weights(given: Sequence[float], n: int) -> None:
    weights = [float(w) for w in given]
    if len(weights) != n:
        raise UsageError(f"There are {len(weights)} weights for {n} adapters; give one for each.")
    if not all(map(math.isfinite, weights)):
        raise UsageError(f"Weights must be finite numbers, not {', '.join(map(str, weights))}.")
    if any(abs(w) > LARGEST_WEIGHT for w in weights):
        raise UsageError(
            f"A weight of {max(weights, key=abs):g} is beyond {LARGEST_WEIGHT:g}, at which the "
            "others vanish in that adapter's rounding; give smaller weights."
        )


def space_for(method: MergeMethod, given: str | None) -> str:
    """The space as given, or the method's default."""
    if given is None:
        return method.default_space()
    if isinstance(method, FactorMethod):
        raise UsageError(
            f"{name_of(method)} acts on the factors as stored and has no space to choose; leave it "
            "out."
        )
    space_named(given)
    return given


def rank_of(given: int | str) -> int | None:
    """A positive rank, or None for "auto"."""
    if given == "auto":
        return None
    try:
        rank = int(given)
    except ValueError:
        rank = 0
    if rank < 1 or isinstance(given, bool):
        raise UsageError(f"rank must be a positive whole number or auto, not {given!r}.")
    return rank


def check_names(adapters: Sequence[Adapter]) -> None:
    """Raises UsageError for no adapters, or two of one name."""
    if not adapters:
        raise UsageError("There is nothing to merge; name at least one adapter.")
    names = [adapter.name for adapter in adapters]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"Two adapters are called {name!r}; give them names, such as first=REF second=REF."
            )


def check_adapters(plan: MergePlan) -> list[Issue]:
    """Check everything that is known without reading factors. Returns issues for the report.

    Raises UnsupportedAdapter for an error found on reading and for an extra that would be lost,
    unless the plan allows their codes.
    """
    notes = [note for adapter in plan.adapters for note in _findings(adapter, plan)]
    notes += _base_copies(plan)
    for one, other in combinations(plan.adapters, 2):
        if problem := conflict(one, other):
            raise CompatibilityError(f"{problem.message} {problem.cure}", problem.cure)
        for a, b in ((one, other), (other, one)):
            owners = {owner_of(stack)[0] for stack in stacks(a.layout)}
            if shared := sorted(owners & b.layout.keys()):
                raise CompatibilityError(
                    f"{a.name} changes a parameter of {shared[0]} (target_parameters) and {b.name} "
                    "has a LoRA of this module, which peft cannot hold in one file; leave one out."
                )
    return notes


def check_layout(plan: MergePlan) -> None:
    """Raises CompatibilityError if two adapters disagree about a module's shape or kind.

    Also if a method that acts on factors lacks equal ones.
    """
    first: dict[str, Adapter] = {}
    on_factors = isinstance(plan.method, FactorMethod)
    for adapter in plan.adapters:
        for path in adapter.layout:
            problem = _difference(path, first.setdefault(path, adapter), adapter, on_factors)
            if problem:
                raise CompatibilityError(f"Module {path} {problem}")
    for path in plan.layout if on_factors else ():
        for adapter in plan.adapters:
            if path not in adapter.layout:
                raise CompatibilityError(
                    f"Adapter {adapter.name} leaves module {path} alone, so it has no factors "
                    "to average there; use uniform, which counts it as zero."
                )


def _difference(path: str, one: Adapter, other: Adapter, on_factors: bool) -> str:
    """What two adapters disagree about in one module; "" if nothing."""
    a, b = one.layout[path], other.layout[path]
    shape_a, shape_b = (a.out_features, a.in_features), (b.out_features, b.in_features)
    if shape_a != shape_b:
        return (
            f"is {list(shape_a)} in {one.name} and {list(shape_b)} in {other.name}; they belong "
            "to different base models, so merge adapters of one base."
        )
    if a.kind != b.kind and "embedding" in (a.kind, b.kind):
        return (
            f"is of kind {a.kind} in {one.name} and {b.kind} in {other.name}; they belong to "
            "different base models, so merge adapters of one base."
        )
    if a.kernel != b.kernel:
        return (
            f"is a convolution with kernel {list(a.kernel)} in {one.name} and {list(b.kernel)} in "
            f"{other.name}, so merge adapters of one base."
        )
    if on_factors and a.rank != b.rank:
        return (
            f"has rank {a.rank} in {one.name} and {b.rank} in {other.name}, so its factors cannot "
            "be averaged; use uniform, which takes any ranks."
        )
    return ""


def check_finite(factors: SideBySide, names: Sequence[str], path: str) -> None:
    """Raises AdapterError if a factor of one module holds NaN or Inf, or dW passes LARGEST_NORM."""
    diagonals = torch.stack([gram.diagonal() for gram in factors.grams])  # [2, R]
    parts = diagonals.split(factors.ranks, dim=1)
    for name, own, scaling in zip(names, parts, factors.scalings, strict=True):
        if not bool(torch.isfinite(own).all()):
            raise AdapterError(
                f"Adapter {name} has NaN or Inf in module {path}; its training diverged or its "
                "file is damaged, so take an earlier checkpoint."
            )
        if bool((own.prod(0).sqrt() * abs(scaling) > LARGEST_NORM).any()):
            raise AdapterError(
                f"Adapter {name} adds numbers beyond {LARGEST_NORM:g} to module {path}, which "
                "float32 cannot add up; its training diverged, so take an earlier checkpoint."
            )


def check_effect(plan: MergePlan, inner: Float64[Tensor, "n n"]) -> list[Issue]:
    """Adapters without an effect and equal adapters, from inner products of whole adapters [n, n].

    Raises UnsupportedAdapter for an adapter all of whose deltas are zero, unless allowed.
    """
    notes = []
    plain = [(i, a.name) for i, a in enumerate(plan.adapters) if not a.has_more_than_factors]
    for i, name in plain:
        if inner[i, i] > 0:
            continue
        message = f"Adapter {name} has no effect (all of its deltas are zero)"
        if "no-effect" not in plan.allow:
            raise UnsupportedAdapter(
                f"{message}; it was never trained or its weights were not saved, so leave it out."
            )
        notes.append(Issue("warning", "no-effect", (name,), f"Allowed: {message}."))
    for (i, name), (j, other) in combinations(plain, 2):
        if same_update(inner, i, j):
            message = f"{name} and {other} are the same update."
            cure = "Leave one of them out."
            notes.append(Issue("warning", "duplicate", (name, other), message, cure))
    return notes


def _findings(adapter: Adapter, plan: MergePlan) -> list[Issue]:
    """Raises UnsupportedAdapter for errors found on reading and for extras that would be lost."""
    notes = []
    for issue in adapter.issues:
        if issue.severity == "error" and issue.code not in plan.allow:
            message = f"Adapter {adapter.name}: {issue.message} {issue.cure}".strip()
            raise UnsupportedAdapter(message, issue.cure)
        if issue.severity == "error":
            notes.append(replace(issue, severity="warning", message=f"Allowed: {issue.message}"))
    if not adapter.modules:
        raise UnsupportedAdapter(f"Adapter {adapter.name} has no LoRA factors that can be merged.")
    for extra in adapter.extras:
        if extra.kind != "base_copy" and extra.kind not in plan.carried:
            _check_dropped(adapter, extra, plan.method, plan.allow)
            message = f"Allowed: {extra} was dropped."
            notes.append(Issue("warning", extra.code, (adapter.name,), message, "", extra.module))
    return notes


def check_kept(adapters: Sequence[Adapter], method: MergeMethod, allow: Collection[str]) -> None:
    """Raises UnsupportedAdapter for extras that only a linear method keeps.

    The same check as in a merge with the base at hand, for use before anything else is done.
    """
    for adapter in adapters:
        for extra in adapter.extras:
            if extra.kind in LinearMethod.carried - method.carried:
                _check_dropped(adapter, extra, method, allow)


def _check_dropped(
    adapter: Adapter, extra: Extra, method: MergeMethod, allow: Collection[str]
) -> None:
    """Raises UnsupportedAdapter, unless allowed, for an extra that the merge would drop."""
    if extra.code in allow:
        return
    why = "which a merge would lose; merge it into its base with peft first"
    if extra.kind in method.carried:
        why = "whose merge needs the base's weights; add --base DIR or --base auto"
    elif extra.kind in LinearMethod.carried:
        why = (
            "which only a linear method keeps; take uniform, sum or task_arithmetic, merge the "
            "adapter into its base with peft first"
        )
    raise UnsupportedAdapter(
        f"Adapter {adapter.name} holds {extra}, {why}, or add --allow {extra.code} to drop it "
        "knowingly."
    )


def _base_copies(plan: MergePlan) -> list[Issue]:
    """Copies of frozen base weights are dropped if all adapters that hold one hold the same."""
    held: dict[str, list[tuple[Adapter, Extra]]] = {}
    for adapter in plan.adapters:
        for extra in adapter.extras:
            if extra.kind == "base_copy":
                held.setdefault(extra.module or extra.key, []).append((adapter, extra))
    notes = []
    for module, copies in held.items():
        names = tuple(adapter.name for adapter, _ in copies)
        same = all(_same_copy(one, other) for one, other in combinations(copies, 2))
        if not same and "base-copy" not in plan.allow:
            raise UnsupportedAdapter(
                f"Adapters {listing(names)} hold different copies of the base's weight of "
                f"{module}, so they were trained on different bases or with resized vocabularies; "
                "merge adapters of one base, or add --allow base-copy to keep the base's own."
            )
        message = (
            f"The copy of the base's weight of {module} was not written; it is the base's own "
            "unless the vocabulary was resized."
        )
        severity = "note" if same else "warning"
        cure = "After a resize, add the new rows to the base first."
        notes.append(Issue(severity, "base-copy", names, message, cure, module))  # type: ignore[arg-type]
    return notes


def _same_copy(one: tuple[Adapter, Extra], other: tuple[Adapter, Extra]) -> bool:
    if any(adapter.weights_file is None for adapter, _ in (one, other)):
        return False
    return same_weight(copied_weight(*one), copied_weight(*other))
