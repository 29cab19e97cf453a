"""merge: method, space and rank applied to all modules of the adapters, one module at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from loraprobe.adapters import Adapter, Source, adapter_of, common_targets, extreme_norm
from loraprobe.adapters.experts import common_parameters, without_experts
from loraprobe.defaults import COMPRESSION_LIMIT
from loraprobe.errors import UsageError
from loraprobe.merging import _validation
from loraprobe.merging._merged import Merged
from loraprobe.merging._method import METHODS, MergeMethod
from loraprobe.merging._module import MergedModule, merge_module
from loraprobe.merging._plan import BaseTensors, MergePlan
from loraprobe.merging._replaced import merge_full_weights, merge_lora_biases, merge_token_rows
from loraprobe.records import Issue, Progress
from loraprobe.registry import name_of, spec_of


@torch.no_grad()
def merge(
    adapters: Sequence[Adapter],
    method: str | MergeMethod = "uniform",
    *,
    weights: Sequence[float] | None = None,
    space: str | None = None,
    rank: int | str = "auto",
    seed: int = 0,
    allow: Collection[str] = (),
    name: str | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress | None = None,
    base: BaseTensors | None = None,
) -> Merged:
    """Merge adapters of one base into one adapter, without the base where that is possible.

    weights: one per adapter, used as given and never normalised; the method's default_weights if
    None. space: "full", "core" or "knots"; the method's default if None. rank: a number, or "auto"
    for as many as needed to lose nothing, at most the sum of the sources' ranks. A module that an
    adapter does not adapt counts as a zero delta; a module's rank is never larger than its
    numerical rank. dtype: of the written factors, the widest of the sources' if None. allow: codes
    of issues to accept. One module of all adapters is in memory at a time.

    base: its weights are needed by linear merges of DoRA adapters (`_dora`), its parameters for
    full weights, biases and token rows that not every adapter has, or whose weights do not sum
    to 1 (`_replaced`). Raises UsageError, CompatibilityError,
    UnsupportedAdapter, AdapterError or OutOfMemory.
    """
    _validation.check_names(adapters)
    made = METHODS.make(method)
    used, notes = _validation.weights_for(made, weights, len(adapters))
    space, cut = _validation.space_for(made, space), _validation.rank_of(rank)
    dtype = dtype or _widest(adapters)
    plan = MergePlan(adapters, made, used, space, cut, seed, dtype, base, allow)
    return _merged(plan, name or name_of(made), notes, progress)


def _merged(
    plan: MergePlan, name: str, notes: Sequence[Issue], progress: Progress | None
) -> Merged:
    """The merge by this plan. notes: issues about its choices."""
    issues = _validation.check_adapters(plan)
    _validation.check_layout(plan)
    plan.require_memory()
    others, dropped = _other_tensors(plan)
    modules = _merge_modules(plan, progress)
    inner = torch.stack([m.inner for m in modules.values()]).sum(0)
    issues += [*notes, *dropped, *_validation.check_effect(plan, inner)]
    for i, adapter in enumerate(plan.adapters):
        square, path = max((float(m.inner[i, i]), path) for path, m in modules.items())
        issues += extreme_norm(adapter.name, math.sqrt(max(square, 0.0)), path)
    if not (any(m.norm2 for m in modules.values()) or any(others.values())):
        raise UsageError(
            "The merge is zero in every module: the weights cancel, or the method keeps only what "
            "the adapters share and they share nothing; change the weights or the method."
        )
    result = _result(_adapter(name, plan, modules, others), plan, modules, inner)
    issues += _warnings(plan.adapters, result.compression_error)
    return replace(result, issues=tuple(issues))


def _widest(adapters: Sequence[Adapter]) -> torch.dtype:
    """The dtype that holds all sources'. 8-bit floats, in which nothing can be cut, become bf16."""
    dtypes = [torch.bfloat16 if a.dtype.itemsize == 1 else a.dtype for a in adapters]
    return functools.reduce(torch.promote_types, dtypes)


def _merge_modules(plan: MergePlan, progress: Progress | None) -> dict[str, MergedModule]:
    """Merge all modules, with the adapters ordered by their content.

    The order in which the adapters are given therefore changes no bit of the result, even where it
    depends on rounding: the sign of a sum that cancels, or the basis of a space with equal singular
    values.
    """
    given = plan.adapters
    order = sorted(range(len(given)), key=lambda i: (given[i].sha256, given[i].name))
    weights = tuple(plan.weights[i] for i in order)
    ordered = replace(plan, adapters=[given[i] for i in order], weights=weights)
    place = torch.tensor(order).argsort()
    modules: dict[str, MergedModule] = {}
    for path in plan.layout:
        merged = merge_module(path, ordered)
        modules[path] = replace(merged, inner=merged.inner[place][:, place])
        if progress:
            progress("merge", len(modules), len(plan.layout))
    return modules


def _other_tensors(plan: MergePlan) -> tuple[dict[str, Any], list[Issue]]:
    """What an adapter holds beside factors, by the names of `adapter_of`; warnings for losses."""
    if not plan.coefficients:
        return {}, []
    whole, dropped = merge_full_weights(plan)
    rows, lost = merge_token_rows(plan)
    others = {"whole": whole, "offsets": merge_lora_biases(plan), "token_rows": rows}
    return others, dropped + lost


def _adapter(
    name: str, plan: MergePlan, modules: Mapping[str, MergedModule], others: Mapping[str, Any]
) -> Adapter:
    """The merged adapter in memory, with the base and task type that the sources agree on."""
    adapters = plan.adapters
    bases = [a.base_model for a in adapters if a.base_model]
    same_base = [a for a in adapters if bases and a.base_model == bases[0]]
    config = {key: _agreed(adapters, key) for key in ("task_type", "auto_mapping")}
    config["target_parameters"] = common_parameters(adapters)
    config["revision"] = _agreed(same_base, "revision")
    made_of = ", ".join(a.source.public for a in adapters)
    return adapter_of(
        name,
        {path: m.update for path, m in modules.items()},
        kinds={path: info.kind for path, info in plan.layout.items()},
        kernels={path: info.kernel for path, info in plan.layout.items() if info.kernel},
        base_model=bases[0] if bases else None,
        config=config,
        source=Source(reference=f"{name}({made_of})"),
        magnitudes={p: m.magnitudes for p, m in modules.items() if m.magnitudes is not None},
        **others,
    )


def _agreed(adapters: Sequence[Adapter], key: str) -> Any:
    """The value of a config's key if all that have one agree; else None, which peft accepts."""
    values = [a.config[key] for a in adapters if a.config.get(key)]
    return values[0] if values and all(value == values[0] for value in values) else None


def _result(
    merged: Adapter, plan: MergePlan, modules: Mapping[str, MergedModule], inner: Tensor
) -> Merged:
    """The merge with its errors. inner: the sources' Gram matrix [n, n], summed over modules."""
    adapters, found = plan.adapters, modules.values()
    norm2, lost2 = sum(m.norm2 for m in found), sum(m.lost2 for m in found)
    norms = inner.diagonal().clamp_min(0).sqrt().tolist()
    return Merged(
        adapter=merged,
        method=repr(plan.method),
        space=plan.space,
        rank=max(m.update.rank for m in found),
        compression_error=_share(lost2, norm2),
        rounding_error=_share(sum(m.rounded2 for m in found), norm2 - lost2),
        sources=tuple(a.summary(norm) for a, norm in zip(adapters, norms, strict=True)),
        weights=plan.weights,
        seed=plan.seed,
        sketch_error=_share(sum(m.gained2 for m in found), norm2),
        spec=spec_of(plan.method),
        asked_rank=plan.rank,
        directories=tuple(a.source.path for a in adapters if a.source.path is not None),
        targets=common_targets(adapters, without_experts(merged.layout)),
    )


def _share(part2: float, total2: float) -> float:
    """The ratio of two norms from their squares."""
    return math.sqrt(part2 / max(total2, 1e-300))


def _warnings(adapters: Sequence[Adapter], lost: float) -> Iterator[Issue]:
    """Warnings about the result: sources of several bases, a rank that loses much."""
    names = tuple(a.name for a in adapters)
    bases = sorted({a.base_model for a in adapters if a.base_model})
    if len(bases) > 1:
        message = f"The sources name different bases ({', '.join(bases)}); the first's is kept."
        yield Issue("warning", "base-mismatch", names, message, "Merge adapters of one base.")
    if lost > COMPRESSION_LIMIT:
        message = f"The rank loses {lost:.0%} of the merged delta (Frobenius norm)."
        cure = "A larger --rank loses less; with --rank auto a linear method loses nothing."
        yield Issue("warning", "compression-lost", names, message, cure)
