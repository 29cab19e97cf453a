"""merge: method, space and rank applied to all modules of the adapters, one module at a time."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from loraprobe.adapters import (
    Adapter,
    ModuleInfo,
    Source,
    adapter_of,
    check_apart,
    common_targets,
    extreme_norm,
    portable,
)
from loraprobe.adapters.experts import common_parameters, without_experts
from loraprobe.defaults import COMPRESSION_LIMIT
from loraprobe.errors import UsageError
from loraprobe.formatting import shortly
from loraprobe.lora.lowrank import LowRank
from loraprobe.merging import _validation
from loraprobe.merging._dora import BaseWeight
from loraprobe.merging._full_weights import Parameter, merge_full_weights, merge_lora_biases
from loraprobe.merging._memory import check_memory
from loraprobe.merging._method import MergeMethod
from loraprobe.merging._module import Choices, MergedModule, merge_module
from loraprobe.merging._token_rows import merge_token_rows
from loraprobe.records import AdapterSummary, Issue, Progress
from loraprobe.registry import name_of, spec_of

RankLayout = Literal["portable", "compact"]


@dataclass(frozen=True, eq=False)
class Merged:
    """An adapter made of others, and how it was made.

    compression_error: ||dW - dW_k||_F / ||dW||_F over the whole adapter, where dW is the method's
        result and dW_k what `rank` keeps of it; 0.0 where nothing above rounding was cut.
    rounding_error: the same ratio for writing the factors in their dtype.
    sketch_error: the same ratio for what the last round of a sketch of a large dense module still
        added, about what an exact SVD might keep in addition; 0.0 where no sketch was needed.
    rank: the largest rank of a module. weights: those that were used. spec, asked_rank: the method
        and the rank (None for "auto") from which the merge can be repeated. directories: where the
        sources lie on this machine.
    rank_layout: "portable" writes one rank in all modules, filled up with zeros, "compact" each
        module's own. targets: `target_modules` of the portable file; None for every path.
    """

    adapter: Adapter
    method: str
    space: str
    rank: int
    compression_error: float
    rounding_error: float
    sources: tuple[AdapterSummary, ...]
    issues: tuple[Issue, ...] = ()
    card: str | None = None
    weights: tuple[float, ...] = ()
    seed: int = 0
    sketch_error: float = 0.0
    spec: str = ""
    asked_rank: int | None = None
    directories: tuple[Path, ...] = ()
    rank_layout: RankLayout = "portable"
    targets: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        return self.adapter.name

    def __repr__(self) -> str:
        sources = shortly(source.name for source in self.sources)
        weights = ", ".join(f"{weight:g}" for weight in self.weights[:12])
        more = ", ..." if len(self.weights) > 12 else ""
        return (
            f"<Merged {shortly([self.name])}: {self.spec or self.method} of {sources}, "
            f"weights {weights or 'none'}{more}, space {self.space}, rank {self.rank}, "
            f"{self.compression_error:.2g} lost to the rank>"
        )

    def save(self, directory: str | Path, overwrite: bool = False) -> None:
        """Writes a PEFT directory, with `card` as its README.

        Raises OutputError, also where the directory is, contains or lies inside a source.
        """
        check_apart(Path(directory), self.directories)
        targets = self.targets if self.rank_layout == "portable" else None
        self.written.save(directory, overwrite=overwrite, card=self.card, targets=targets)

    @property
    def written(self) -> Adapter:
        """The adapter as it is saved, in the asked layout of ranks."""
        return portable(self.adapter) if self.rank_layout == "portable" else self.adapter


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
    rank_layout: RankLayout = "portable",
    base_weight: BaseWeight | None = None,
    base_parameter: Parameter | None = None,
) -> Merged:
    """Merge adapters of one base into one adapter, without the base where that is possible.

    weights: one per adapter, used as given and never normalised; the method's default_weights if
    None. space: "full", "core" or "knots"; the method's default if None. rank: a number, or "auto"
    for as many as needed to lose nothing, at most the sum of the sources' ranks. A module that an
    adapter does not adapt counts as a zero delta; a module's rank is never larger than its
    numerical rank. dtype: of the written factors, the widest of the sources' if None. allow: codes
    of issues to accept. rank_layout: as in `Merged`; it decides the saved file alone. One module of
    all adapters is in memory at a time.

    base_weight: module path -> W0 [out, in], which linear merges of DoRA adapters need (`_dora`);
    base_parameter: parameter name -> tensor as stored, for full weights, biases and token rows that
    not every adapter has, or whose weights do not sum to 1 (`_full_weights`, `_token_rows`).

    Raises UsageError, CompatibilityError, UnsupportedAdapter, AdapterError or OutOfMemory.
    """
    _validation.check_names(adapters)
    choices, notes = Choices.of(adapters, method, weights, space, rank, seed, dtype)
    carried = _validation.carried_by(choices.method, base_weight is not None)
    issues = _validation.check_adapters(adapters, allow, carried)
    if "dora_magnitude" in carried and any(a.magnitudes for a in adapters):
        choices = replace(choices, base_weight=base_weight)
    layout = _validation.layout(adapters, choices.method)
    check_memory(adapters, layout, choices)
    others, dropped = _other_tensors(adapters, choices, layout, base_parameter, allow)
    modules = _merge_modules(adapters, layout, choices, progress)
    inner = torch.stack([m.inner for m in modules.values()]).sum(0)
    issues += notes + dropped + _validation.check_effect(adapters, inner, allow)
    issues += _extreme_norms(adapters, modules)
    if not (any(m.norm2 for m in modules.values()) or any(others.values())):
        raise UsageError(
            "The merge is zero in every module: the weights cancel, or the method keeps only what "
            "the adapters share and they share nothing; change the weights or the method."
        )
    made = name or name_of(choices.method)
    merged = _adapter(made, adapters, layout, modules, others)
    result = _result(merged, adapters, choices, modules, inner)
    issues += _warnings(adapters, result.compression_error)
    return replace(result, issues=tuple(issues), rank_layout=rank_layout)


def _result(
    merged: Adapter,
    adapters: Sequence[Adapter],
    choices: Choices,
    modules: Mapping[str, MergedModule],
    inner: Tensor,
) -> Merged:
    """The merge with its errors. inner: the sources' Gram matrix [n, n], summed over modules."""
    norm2, lost2, rounded2, gained2 = (
        sum(getattr(m, name) for m in modules.values())
        for name in ("norm2", "lost2", "rounded2", "gained2")
    )
    norms = inner.diagonal().clamp_min(0).sqrt().tolist()
    return Merged(
        adapter=merged,
        method=repr(choices.method),
        space=choices.space,
        rank=max(m.update.rank for m in modules.values()),
        compression_error=_share(lost2, norm2),
        rounding_error=_share(rounded2, norm2 - lost2),
        sources=tuple(a.summary(norm) for a, norm in zip(adapters, norms, strict=True)),
        weights=choices.weights,
        seed=choices.seed,
        sketch_error=_share(gained2, norm2),
        spec=spec_of(choices.method),
        asked_rank=choices.rank,
        directories=tuple(a.source.path for a in adapters if a.source.path is not None),
        targets=common_targets(adapters, without_experts(merged.layout)),
    )


def _merge_modules(
    adapters: Sequence[Adapter],
    layout: Mapping[str, ModuleInfo],
    choices: Choices,
    progress: Progress | None,
) -> dict[str, MergedModule]:
    """Merge all modules, with the adapters ordered by their content.

    The order in which the adapters are given therefore changes no bit of the result, even where it
    depends on rounding: the sign of a sum that cancels, or the basis of a space with equal singular
    values.
    """
    n = len(adapters)
    order = sorted(range(n), key=lambda i: (adapters[i].sha256, adapters[i].name))
    sources = [adapters[i] for i in order]
    ordered = replace(choices, weights=tuple(choices.weights[i] for i in order))
    place = torch.tensor(order).argsort()
    modules: dict[str, MergedModule] = {}
    for path, info in layout.items():
        updates = [_update(adapter, path, info) for adapter in sources]
        merged = merge_module(path, updates, sources, ordered)
        modules[path] = replace(merged, inner=merged.inner[place][:, place])
        if progress:
            progress("merge", len(modules), len(layout))
    return modules


def _share(part2: float, total2: float) -> float:
    """The ratio of two norms from their squares."""
    return math.sqrt(part2 / max(total2, 1e-300))


def _update(adapter: Adapter, path: str, info: ModuleInfo) -> LowRank:
    """An adapter's update of a module, of rank 0 where it does not adapt the module."""
    if path not in adapter.modules:
        return LowRank(torch.zeros(0, info.in_features), torch.zeros(info.out_features, 0))
    return adapter.modules[path]


def _other_tensors(
    adapters: Sequence[Adapter],
    choices: Choices,
    layout: Mapping[str, ModuleInfo],
    parameter: Parameter | None,
    allow: Collection[str],
) -> tuple[dict[str, Any], list[Issue]]:
    """What an adapter holds beside factors, by the names of `adapter_of`; warnings for losses."""
    coefficients = choices.coefficients
    if not coefficients:
        return {}, []
    whole, dropped = merge_full_weights(adapters, coefficients, parameter, allow)
    rows, lost = merge_token_rows(adapters, coefficients, parameter, allow)
    offsets = merge_lora_biases(adapters, coefficients, layout)
    return {"whole": whole, "offsets": offsets, "token_rows": rows}, dropped + lost


def _extreme_norms(
    adapters: Sequence[Adapter], modules: Mapping[str, MergedModule]
) -> Iterator[Issue]:
    """An issue for each source whose largest delta is implausible."""
    for i, adapter in enumerate(adapters):
        square, path = max((float(m.inner[i, i]), path) for path, m in modules.items())
        yield from extreme_norm(adapter.name, math.sqrt(max(square, 0.0)), path)


def _adapter(
    name: str,
    adapters: Sequence[Adapter],
    layout: Mapping[str, ModuleInfo],
    modules: Mapping[str, MergedModule],
    others: Mapping[str, Any],
) -> Adapter:
    """The merged adapter in memory, with the base and task type that the sources agree on."""
    bases = [a.base_model for a in adapters if a.base_model]
    config = {key: _agreed(adapters, key) for key in ("task_type", "auto_mapping")}
    config |= {"target_parameters": common_parameters(adapters)}
    same_base = [a for a in adapters if bases and a.base_model == bases[0]]
    config["revision"] = _agreed(same_base, "revision")
    made_of = ", ".join(a.source.public for a in adapters)
    scaled = {path: m.magnitudes for path, m in modules.items() if m.magnitudes is not None}
    return adapter_of(
        name,
        {path: m.update for path, m in modules.items()},
        kinds={path: info.kind for path, info in layout.items()},
        kernels={path: info.kernel for path, info in layout.items() if info.kernel},
        base_model=bases[0] if bases else None,
        config=config,
        source=Source(reference=f"{name}({made_of})"),
        magnitudes=scaled,
        **others,
    )


def _agreed(adapters: Sequence[Adapter], key: str) -> Any:
    """The value of a config's key if all that have one agree; else None, which peft accepts."""
    values = [a.config[key] for a in adapters if a.config.get(key)]
    return values[0] if values and all(value == values[0] for value in values) else None


def _warnings(adapters: Sequence[Adapter], lost: float) -> Iterator[Issue]:
    """Warnings about the result: sources of several bases, a rank that loses much."""
    names = tuple(a.name for a in adapters)
    bases = sorted({a.base_model for a in adapters if a.base_model})
    if len(bases) > 1:
        message = f"The sources name different bases ({', '.join(bases)}); the first's is kept."
        yield Issue("warning", "base-mismatch", names, message, "Merge adapters of one base.")
    if lost > COMPRESSION_LIMIT:
        message = f"The rank keeps all but {lost:.0%} of the merged delta (Frobenius norm)."
        cure = "Give a larger --rank; an elementwise method in the full space has no low rank."
        yield Issue("warning", "compression-lost", names, message, cure)
