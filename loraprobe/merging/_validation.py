"""The checks of a merge. Each error names the cure, and nothing is dropped silently."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import torch
from jaxtyping import Float64
from torch import Tensor

from loraprobe.adapters import Adapter, Extra, ModuleInfo, copied_weight, same_weight
from loraprobe.adapters.experts import conflict
from loraprobe.errors import AdapterError, CompatibilityError, UnsupportedAdapter, UsageError
from loraprobe.formatting import listing
from loraprobe.lora.lowrank import same_update
from loraprobe.merging._method import FactorMethod, LinearMethod, MergeMethod
from loraprobe.records import Issue
from loraprobe.registry import name_of

LARGEST_WEIGHT = 1e6


def check_weights(
    weights: Sequence[float] | None, method: MergeMethod, n: int
) -> tuple[tuple[float, ...], list[Issue]]:
    """The weights to use, as given or the method's own, and a note if given ones are not used."""
    if weights is None:
        return method.default_weights(n), []
    weights = tuple(float(w) for w in weights)
    if len(weights) != n:
        raise UsageError(f"There are {len(weights)} weights for {n} adapters; give one for each.")
    if not all(map(math.isfinite, weights)):
        raise UsageError(f"Weights must be finite numbers, not {', '.join(map(str, weights))}.")
    if any(abs(w) > LARGEST_WEIGHT for w in weights):
        raise UsageError(
            f"A weight of {max(weights, key=abs):g} is beyond {LARGEST_WEIGHT:g}, at which the "
            "others vanish in that adapter's rounding; give smaller weights."
        )
    if method.takes_weights:
        return weights, []
    message = f"{name_of(method)} has weights of its own; those given were not used."
    return method.default_weights(n), [
        Issue("note", "weights-ignored", (), message, "Use task_arithmetic to weight adapters.")
    ]


def check_rank(rank: int | str) -> int | None:
    """A positive rank, or None for "auto"."""
    if rank == "auto":
        return None
    try:
        number = int(rank)
    except ValueError:
        number = 0
    if number < 1 or isinstance(rank, bool):
        raise UsageError(f"rank must be a positive whole number or auto, not {rank!r}.")
    return number


# Extras that a linear merge keeps (`_dora`, `_full_weights`, `_token_rows`).
LINEAR_EXTRAS = frozenset({"dora_magnitude", "modules_to_save", "bias", "lora_bias", "token_delta"})


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


def check_adapters(
    adapters: Sequence[Adapter], allow: Collection[str], carried: Collection[str] = ()
) -> list[Issue]:
    """Check everything that is known without reading factors. Returns issues for the report.

    carried: the kinds of extra that the merge keeps. Raises UnsupportedAdapter for an error found
    on reading and for an extra that would be lost, unless their codes are in `allow`.
    """
    notes = [note for adapter in adapters for note in _findings(adapter, allow, carried)]
    notes += _base_copies(adapters, allow)
    for one, other in combinations(adapters, 2):
        if problem := conflict(one, other):
            raise CompatibilityError(f"{problem.message} {problem.cure}", problem.cure)
    return notes


def layout(adapters: Sequence[Adapter], method: MergeMethod) -> Mapping[str, ModuleInfo]:
    """All modules that any adapter adapts, in the order in which the adapters list them.

    Raises CompatibilityError if two adapters disagree about a module's shape or kind, or if a
    method that acts on factors lacks equal ones.
    """
    found: dict[str, ModuleInfo] = {}
    owner: dict[str, str] = {}
    for adapter in adapters:
        for path, info in adapter.layout.items():
            first = found.setdefault(path, info)
            owner.setdefault(path, adapter.name)
            if info.kind == "conv1d" and first.kind == "linear":
                found[path] = info  # conv1d and linear differ in a flag that peft sets by the layer
            _check_pair(path, first, info, owner[path], adapter.name, method)
    for path in found if isinstance(method, FactorMethod) else ():
        for adapter in adapters:
            if path not in adapter.layout:
                raise CompatibilityError(
                    f"Adapter {adapter.name} leaves module {path} alone, so it has no factors "
                    "to average there; use uniform, which counts it as zero."
                )
    return found


def check_finite(
    grams: Float64[Tensor, "2 R"], ranks: Sequence[int], names: Sequence[str], path: str
) -> None:
    """Raises AdapterError if a factor holds NaN or Inf; `grams` are diagonals [2, R]."""
    if bool(torch.isfinite(grams).all()):
        return
    parts = zip(names, grams.split(list(ranks), dim=1), strict=True)
    bad = next(name for name, part in parts if not bool(torch.isfinite(part).all()))
    raise AdapterError(
        f"Adapter {bad} has NaN or Inf in module {path}; its training diverged or its file is "
        "damaged, so take an earlier checkpoint."
    )


def check_effect(
    adapters: Sequence[Adapter], inner: Float64[Tensor, "n n"], allow: Collection[str]
) -> list[Issue]:
    """Adapters without an effect and equal adapters, from inner products of whole adapters [n, n].

    Raises UnsupportedAdapter for an adapter all of whose deltas are zero, unless allowed.
    """
    notes = []
    for i, adapter in enumerate(adapters):
        if inner[i, i] > 0 or adapter.has_more_than_factors:
            continue
        message = f"Adapter {adapter.name} has no effect (all of its deltas are zero)"
        if "no-effect" not in allow:
            raise UnsupportedAdapter(
                f"{message}; it was never trained or its weights were not saved, so leave it out."
            )
        notes.append(Issue("warning", "no-effect", (adapter.name,), f"Allowed: {message}."))
    for i, j in combinations(range(len(adapters)), 2):
        more = any(adapters[k].has_more_than_factors for k in (i, j))
        if same_update(inner, i, j) and not more:
            names = (adapters[i].name, adapters[j].name)
            message = f"{names[0]} and {names[1]} are the same update."
            notes.append(Issue("warning", "duplicate", names, message, "Leave one of them out."))
    return notes


def carried_by(method: MergeMethod, has_base: bool) -> frozenset[str]:
    """The kinds of extra that a merge by this method keeps."""
    if not isinstance(method, LinearMethod):
        return frozenset()
    return LINEAR_EXTRAS if has_base else LINEAR_EXTRAS - {"dora_magnitude"}


def _findings(adapter: Adapter, allow: Collection[str], carried: Collection[str]) -> list[Issue]:
    """Raises UnsupportedAdapter for errors found on reading and for extras that would be lost."""
    notes = []
    for issue in adapter.issues:
        if issue.severity == "error" and issue.code not in allow:
            message = f"Adapter {adapter.name}: {issue.message} {issue.cure}".strip()
            raise UnsupportedAdapter(message, issue.cure)
        if issue.severity == "error":
            notes.append(replace(issue, severity="warning", message=f"Allowed: {issue.message}"))
    if not adapter.modules:
        raise UnsupportedAdapter(f"Adapter {adapter.name} has no LoRA factors that can be merged.")
    for extra in adapter.extras:
        if extra.kind != "base_copy" and extra.kind not in carried:
            _check_dropped(adapter, extra, carried, allow)
            message = f"Allowed: {extra} was dropped."
            notes.append(Issue("warning", extra.code, (adapter.name,), message, "", extra.module))
    return notes


def check_kept(adapters: Sequence[Adapter], method: MergeMethod, allow: Collection[str]) -> None:
    """Raises UnsupportedAdapter for extras that only a linear method keeps.

    The same check as in a merge with the base at hand, for use before anything else is done.
    """
    carried = carried_by(method, has_base=True)
    for adapter in adapters:
        for extra in adapter.extras:
            if extra.kind in LINEAR_EXTRAS - carried:
                _check_dropped(adapter, extra, carried, allow)


def _check_dropped(
    adapter: Adapter, extra: Extra, carried: Collection[str], allow: Collection[str]
) -> None:
    """Raises UnsupportedAdapter, unless allowed, for an extra that the merge would drop."""
    if extra.code in allow:
        return
    why = "which a merge would lose; merge it into its base with peft first"
    if extra.kind == "dora_magnitude" and carried:
        why = "whose merge needs the base's weights; add --base DIR or --base auto"
    elif extra.kind in LINEAR_EXTRAS:
        why = (
            "which only a linear method keeps; take uniform, sum or task_arithmetic, merge the "
            "adapter into its base with peft first"
        )
    raise UnsupportedAdapter(
        f"Adapter {adapter.name} holds {extra}, {why}, or add --allow {extra.code} to drop it "
        "knowingly."
    )


def _base_copies(adapters: Sequence[Adapter], allow: Collection[str]) -> list[Issue]:
    """Copies of frozen base weights are dropped if all adapters that hold one hold the same."""
    held: dict[str, list[tuple[Adapter, Extra]]] = {}
    for adapter in adapters:
        for extra in adapter.extras:
            if extra.kind == "base_copy":
                held.setdefault(extra.module or extra.key, []).append((adapter, extra))
    notes = []
    for module, copies in held.items():
        names = tuple(adapter.name for adapter, _ in copies)
        same = all(_same_copy(one, other) for one, other in combinations(copies, 2))
        if not same and "base-copy" not in allow:
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


def _check_pair(
    path: str, a: ModuleInfo, b: ModuleInfo, name_a: str, name_b: str, method: MergeMethod
) -> None:
    """Raises CompatibilityError if two adapters disagree about one module."""
    shape_a, shape_b = (a.out_features, a.in_features), (b.out_features, b.in_features)
    problem = ""
    if shape_a != shape_b:
        problem = (
            f"is {list(shape_a)} in {name_a} and {list(shape_b)} in {name_b}; they belong to "
            "different base models, so merge adapters of one base."
        )
    elif a.kind != b.kind and "embedding" in (a.kind, b.kind):
        problem = (
            f"is of kind {a.kind} in {name_a} and {b.kind} in {name_b}; they belong to different "
            "base models, so merge adapters of one base."
        )
    elif a.kernel != b.kernel:
        problem = (
            f"is a convolution with kernel {list(a.kernel)} in {name_a} and {list(b.kernel)} in "
            f"{name_b}, so merge adapters of one base."
        )
    elif isinstance(method, FactorMethod) and a.rank != b.rank:
        problem = (
            f"has rank {a.rank} in {name_a} and {b.rank} in {name_b}, so its factors cannot be "
            "averaged; use uniform, which takes any ranks."
        )
    if problem:
        raise CompatibilityError(f"Module {path} {problem}")
