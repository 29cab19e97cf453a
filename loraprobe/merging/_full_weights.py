"""Linear merges of full weights (modules_to_save, trained biases) and of biases of B.

    W = W0 + sum_i w_i (W_i - W0)

which is sum_i w_i W_i, without W0, if every adapter has the parameter and the weights sum to 1.
Otherwise W0 is read from the base. For a parameter that the base does not have (the head of a
classifier) only the mean exists.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from loraprobe.adapters import Adapter
from loraprobe.errors import BaseError, CompatibilityError, UnsupportedAdapter
from loraprobe.formatting import listing
from loraprobe.merging._plan import BaseTensors, MergePlan
from loraprobe.records import Issue

SUM_TOLERANCE = 1e-9  # weights that sum to 1 up to the rounding of their own sum
HEADS = ("score", "classifier", "qa_outputs", "classification_head")


def merge_full_weights(plan: MergePlan) -> tuple[dict[str, Tensor], list[Issue]]:
    """Name -> merged tensor in the sources' widest dtype, summed in float64; and warnings.

    Raises UnsupportedAdapter, naming parameter and cure, where a merge would not be exact and its
    issue code is not allowed; CompatibilityError where shapes differ.
    """
    merged: dict[str, Tensor] = {}
    notes: list[Issue] = []
    sums_to_1 = abs(sum(plan.coefficients) - 1) <= SUM_TOLERANCE
    for name in dict.fromkeys(name for adapter in plan.adapters for name in adapter.whole):
        _check_factors(name, plan.adapters)
        holders = [adapter for adapter in plan.adapters if name in adapter.whole]
        tensors = [adapter.whole[name] for adapter in holders]
        _check_shapes(name, holders, tensors)
        is_mean = sums_to_1 and len(holders) == len(plan.adapters)
        start = None if is_mean else _in_base(name, tensors[0], plan.base)
        if is_mean or start is not None:
            pairs = zip(plan.adapters, plan.coefficients, strict=True)
            weights = [weight for adapter, weight in pairs if name in adapter.whole]
            merged[name] = _combined(tensors, weights, start)
            continue
        code, names = _code(holders[0], name), tuple(adapter.name for adapter in holders)
        if code not in plan.allow:
            raise UnsupportedAdapter(_why_not(name, names, code, plan.base is not None))
        message = f"Allowed: {name} was dropped."
        notes.append(Issue("warning", code, names, message, module=_module(name)))
    return merged, notes


def merge_lora_biases(plan: MergePlan) -> dict[str, Tensor]:
    """Path -> bias of B, sum_i w_i s_i b_i [out], at scaling 1; {} where no adapter has any.

    An adapter's config declares biases for all modules or for none, so modules without one get
    zeros. Raises UnsupportedAdapter where peft has no such adapter: with DoRA, and in embeddings.
    """
    holders = [adapter for adapter in plan.adapters if adapter.offsets]
    if not holders:
        return {}
    dora = [adapter.name for adapter in plan.adapters if adapter.magnitudes]
    embeddings = [path for path, info in plan.layout.items() if info.kind == "embedding"]
    if dora or embeddings:
        what = f"DoRA ({listing(dora)})" if dora else f"the embedding {embeddings[0]}"
        raise UnsupportedAdapter(
            f"Adapter {holders[0].name} has biases of B (lora_bias), which peft does not take "
            f"together with {what}; leave one of them out, or merge it into the base with peft "
            "first."
        )
    offsets = {}
    for path, info in plan.layout.items():
        total = torch.zeros(info.out_features, dtype=torch.float64)
        for adapter, weight in zip(plan.adapters, plan.coefficients, strict=True):
            if path in adapter.offsets:
                scaling = adapter.layout[path].scaling
                total += weight * scaling * adapter.offsets[path].to(torch.float64)
        offsets[path] = total.to(torch.float32)
    return offsets


def _combined(tensors: Sequence[Tensor], weights: Sequence[float], start: Tensor | None) -> Tensor:
    total = torch.zeros_like(tensors[0], dtype=torch.float64)
    if start is not None:
        total += start.to(torch.float64) * (1 - sum(weights))
    for tensor, weight in zip(tensors, weights, strict=True):
        total += weight * tensor.to(torch.float64)
    return total.to(functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors)))


def _in_base(name: str, like: Tensor, base: BaseTensors | None) -> Tensor | None:
    """The base's tensor; None without a base, or where the base has no such parameter."""
    if base is None:
        return None
    try:
        found = base.parameter(name)
    except BaseError:
        return None
    if found.shape != like.shape:
        raise CompatibilityError(
            f"{name} is {list(like.shape)} in the adapters and {list(found.shape)} in the base; "
            "the vocabulary was resized in training, or the base is another one."
        )
    return found


def _why_not(name: str, names: Sequence[str], code: str, has_base: bool) -> str:
    kind = code.replace("-", "_")
    message = f"Adapter {listing(names)} holds {kind} {name}, "
    if has_base:
        return message + (
            "which the base does not have, so that only its mean exists: every adapter must have "
            f"it and the weights must sum to 1; or add --allow {code} to drop it knowingly."
        )
    return message + (
        "of which only the mean is known without the base (every adapter has it and the weights "
        f"sum to 1); add --base DIR or --base auto, or --allow {code} to drop it knowingly."
    )


def _check_factors(name: str, adapters: Sequence[Adapter]) -> None:
    """Raises UnsupportedAdapter for a module with a full weight here and with factors there."""
    if not name.endswith(".weight"):
        return
    replaced = [a.name for a in adapters if name in a.whole]
    factors = [a.name for a in adapters if _module(name) in a.layout]
    if factors:
        raise UnsupportedAdapter(
            f"{_module(name)} is replaced whole in {listing(replaced)} and has factors in "
            f"{listing(factors)}, which one adapter cannot hold; merge one of them into its base "
            "with peft first."
        )


def _check_shapes(name: str, holders: Sequence[Adapter], tensors: Sequence[Tensor]) -> None:
    own = tensors[0].shape
    for other, tensor in zip(holders, tensors, strict=True):
        if tensor.shape == own:
            continue
        shapes = f"{list(own)} in {holders[0].name} and {list(tensor.shape)} in {other.name}"
        if any(part in HEADS for part in name.split(".")):
            raise CompatibilityError(
                f"{name} is {shapes}: they have different numbers of labels, so their heads "
                "cannot be merged; merge adapters of one set of labels."
            )
        raise CompatibilityError(
            f"{name} is {shapes}: their vocabularies or bases differ; merge adapters of one base."
        )


def _code(adapter: Adapter, name: str) -> str:
    """The issue code of a full weight, modules-to-save or bias, from the adapter's extras."""
    for extra in adapter.extras:
        leaf = extra.key.rpartition(".")[2]
        if f"{extra.module}.{leaf}" == name:
            return extra.code
    return "modules-to-save"


def _module(name: str) -> str:
    return name.rpartition(".")[0]
