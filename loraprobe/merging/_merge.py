"""merge: method, space and rank brought together, one module at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from loraprobe.adapter import Adapter, LayerKind, ModuleInfo, Source, adapter_of
from loraprobe.errors import OutputError, UsageError
from loraprobe.lowrank import LowRank
from loraprobe.merging import _checks
from loraprobe.merging._compress import Compressed, SideBySide, compress_dense, compress_factors
from loraprobe.merging._method import FactorMethod, GramMethod, LinearMethod, MergeMethod
from loraprobe.merging._seeds import generators, module_seed
from loraprobe.merging._shelf import METHODS
from loraprobe.records import AdapterSummary, Issue
from loraprobe.spaces import Stacked, space_named

# A merge that lost more than this share of its delta says so.
COMPRESSION_LIMIT = 0.1

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Merged:
    """An adapter made of others, and how it was made.

    compression_error: ||dW - dW_k||_F / ||dW||_F over the whole adapter, dW what the method gives
        and dW_k what `rank` keeps of it; 0.0 where nothing above rounding was cut.
    rounding_error: the same ratio for writing the factors in their dtype.
    rank: the largest rank of a module. weights: those that were used.
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

    def save(self, directory: str | Path, overwrite: bool = False) -> None:
        """Writes a PEFT directory, with `card` as its README. Raises OutputError."""
        self.adapter.save(directory, overwrite=overwrite, card=self.card)


@dataclass(frozen=True, eq=False)
class _Plan:
    """All choices of one merge, settled."""

    method: MergeMethod
    weights: tuple[float, ...]
    space: str
    stack: Callable[[Sequence[LowRank]], Stacked] | None
    rank: int | None
    seed: int
    dtype: torch.dtype


@dataclass
class _Totals:
    """Sums over modules: inner products of the sources [n, n], and squared norms."""

    inner: Float64[Tensor, "n n"]
    merged: float = 0.0
    lost: float = 0.0
    rounded: float = 0.0
    modules: dict[str, LowRank] = field(default_factory=dict)


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
) -> Merged:
    """Merge adapters of one base into one adapter, without the base.

    weights: one per adapter, used as given and never normalised; default_weights of the method if
    None. space: "full", "core" or "knots"; the method's default if None. rank: a number, or "auto"
    for as many as needed to lose nothing, at most the sum of the sources' ranks. A module that
    some adapters leave alone counts as a zero delta there; a module's rank is never larger than
    its numerical rank. dtype: of the written factors, the widest of the sources' if None. allow:
    codes of issues to accept. One module of all adapters is in memory at a time.

    Raises UsageError, CompatibilityError, UnsupportedAdapter, AdapterError, each with the cure.
    """
    notes = _checks.check_adapters(adapters, allow)
    plan, more = _plan(adapters, method, weights, space, rank, seed, dtype)
    infos = _checks.layout(adapters, plan.method)
    totals = _Totals(torch.zeros(len(adapters), len(adapters), dtype=torch.float64))
    for done, (path, updates) in enumerate(_streamed(adapters, infos)):
        _merge_module(path, updates, [a.name for a in adapters], plan, totals)
        if progress:
            progress("merge", done + 1, len(infos))
    norms = totals.inner.diagonal().clamp_min(0).sqrt().tolist()
    notes += more + _checks.check_effect(adapters, totals.inner, allow)
    if totals.merged == 0:
        raise UsageError(
            "The merge is zero in every module: the weights cancel, or the method keeps only what "
            "the adapters share and they share nothing; change the weights or the method."
        )
    lost = math.sqrt(totals.lost / totals.merged)
    notes += _said(adapters, lost)
    return Merged(
        adapter=_written(adapters, totals.modules, infos, name or _name(plan.method)),
        method=repr(plan.method),
        space=plan.space,
        rank=max(update.rank for update in totals.modules.values()),
        compression_error=lost,
        rounding_error=math.sqrt(totals.rounded / max(totals.merged - totals.lost, 1e-300)),
        sources=tuple(a.summary(norm) for a, norm in zip(adapters, norms, strict=True)),
        issues=tuple(notes),
        weights=plan.weights,
        seed=seed,
    )


def _plan(
    adapters: Sequence[Adapter],
    method: str | MergeMethod,
    weights: Sequence[float] | None,
    space: str | None,
    rank: int | str,
    seed: int,
    dtype: torch.dtype | None,
) -> tuple[_Plan, list[Issue]]:
    made = METHODS.make(method)
    used, notes = _checks.check_weights(weights, made, len(adapters))
    made.check(used)
    if isinstance(made, FactorMethod) and space is not None:
        raise UsageError(f"{_name(made)} acts on the factors as stored and has no space to choose.")
    chosen = space or made.default_space()
    stack = None if isinstance(made, FactorMethod) else space_named(chosen)
    kept = _checks.check_rank(rank)
    return _Plan(made, used, chosen, stack, kept, seed, dtype or _widest(adapters)), notes


def _widest(adapters: Sequence[Adapter]) -> torch.dtype:
    """The dtype that holds all sources'; 8-bit floats, which factors cannot be cut in, widen."""
    dtypes = [torch.bfloat16 if a.dtype.itemsize == 1 else a.dtype for a in adapters]
    return functools.reduce(torch.promote_types, dtypes)


def _streamed(
    adapters: Sequence[Adapter], infos: Mapping[str, ModuleInfo]
) -> Iterator[tuple[str, list[LowRank]]]:
    """Module by module, every adapter's update; rank 0 where an adapter leaves it alone."""
    for path, info in infos.items():
        yield path, [_update(adapter, path, info) for adapter in adapters]


def _update(adapter: Adapter, path: str, info: ModuleInfo) -> LowRank:
    if path not in adapter.modules:
        return LowRank(torch.zeros(0, info.in_features), torch.zeros(info.out_features, 0))
    return adapter.modules[path]


def _merge_module(
    path: str, updates: list[LowRank], names: list[str], plan: _Plan, totals: _Totals
) -> None:
    joint = SideBySide.of(updates)
    diagonals = torch.stack([gram.diagonal() for gram in joint.grams])
    _checks.check_finite(diagonals, joint.ranks, names, path)
    totals.inner += joint.inner()
    compressed = _computed(path, joint, plan)
    written = compressed.update.to(plan.dtype)
    rounded = _rounding2(compressed.update, written)
    if not math.isfinite(rounded):
        raise OutputError(
            f"The merge does not fit into {str(plan.dtype).removeprefix('torch.')} in module "
            f"{path}; write it in float32."
        )
    totals.modules[path] = written
    totals.merged += compressed.norm2
    totals.lost += compressed.lost2
    totals.rounded += rounded


def _computed(path: str, joint: SideBySide, plan: _Plan) -> Compressed:
    """The method's result in one module, cut to the rank."""
    method, n = plan.method, len(joint.ranks)
    if isinstance(method, LinearMethod):
        return joint.combined(method.coefficients(plan.weights, n), plan.rank)
    if isinstance(method, GramMethod):
        return joint.combined(method.coefficients(plan.weights, joint.inner()), plan.rank)
    weights = torch.tensor(plan.weights, dtype=torch.float64)
    if isinstance(method, FactorMethod):
        return compress_factors(_on_factors(method, joint, weights), plan.rank)
    single = plan.space == "full" and not (joint.double or method.double)
    work = torch.float32 if single else torch.float64
    updates = joint.updates(work)
    assert plan.stack is not None
    stacked = plan.stack(updates)
    masks = generators(joint.updates(torch.float64), path, plan.seed)
    result = stacked.back(method(stacked.matrices, weights.to(work), masks))
    if isinstance(result, LowRank):
        return compress_factors(result, plan.rank)
    cap = sum(joint.ranks)
    return compress_dense(result, plan.rank, cap, joint.A.mT.to(work), module_seed(path, plan.seed))


def _on_factors(method: FactorMethod, joint: SideBySide, weights: Float64[Tensor, n]) -> LowRank:
    """The method on the stacked A's and on the stacked B's, sqrt(|s|) in each, s's sign in B."""
    weights_A, weights_B = method.apart(weights)
    updates = joint.updates(torch.float64)
    roots = [abs(s) ** 0.5 for s in joint.scalings]
    A = method(torch.stack([u.A * r for u, r in zip(updates, roots, strict=True)]), weights_A)
    signed = [math.copysign(r, s) for r, s in zip(roots, joint.scalings, strict=True)]
    B = method(torch.stack([u.B * r for u, r in zip(updates, signed, strict=True)]), weights_B)
    return LowRank(A, B)


def _rounding2(exact: LowRank, written: LowRank) -> float:
    """||B' A' - B A||_F^2 as the norm of (B' - B) A' + B (A' - A), in which nothing cancels.

    Not finite if an entry does not fit into the written dtype.
    """
    A = torch.cat([written.A.float(), (written.A - exact.A).float()])
    B = torch.cat([(written.B - exact.B).float(), exact.B.float()], 1)
    square = float(((B.mT @ B) * (A @ A.mT)).sum())
    return max(0.0, square) if math.isfinite(square) else math.inf


def _written(
    adapters: Sequence[Adapter],
    modules: Mapping[str, LowRank],
    infos: Mapping[str, ModuleInfo],
    name: str,
) -> Adapter:
    """The adapter in memory; base, task type and the like are those that the sources agree on."""
    kinds: dict[str, LayerKind] = {path: info.kind for path, info in infos.items()}
    bases = [a.base_model for a in adapters if a.base_model]
    config = {key: _agreed(adapters, key) for key in ("task_type", "auto_mapping")}
    named = [a for a in adapters if bases and a.base_model == bases[0]]
    config["revision"] = _agreed(named, "revision")
    made_of = ", ".join(a.source.reference for a in adapters)
    return adapter_of(
        name,
        modules,
        kinds=kinds,
        base_model=bases[0] if bases else None,
        config=config,
        source=Source(reference=f"{name}({made_of})"),
    )


def _agreed(adapters: Sequence[Adapter], key: str) -> Any:
    """What the configs that have a value for a key agree on, else None, which peft takes too."""
    values = [a.config[key] for a in adapters if a.config.get(key)]
    return values[0] if values and all(value == values[0] for value in values) else None


def _said(adapters: Sequence[Adapter], lost: float) -> list[Issue]:
    """What whoever gets the result must be told."""
    names = tuple(a.name for a in adapters)
    said = []
    bases = sorted({a.base_model for a in adapters if a.base_model})
    if len(bases) > 1:
        message = f"The sources name different bases ({', '.join(bases)}); the first's is kept."
        cure = "Merge adapters of one base."
        said.append(Issue("warning", "base-mismatch", names, message, cure))
    if lost > COMPRESSION_LIMIT:
        message = f"The rank keeps all but {lost:.0%} of the merged delta (Frobenius norm)."
        cure = "Give a larger --rank; an elementwise method in the full space has no low rank."
        said.append(Issue("warning", "compression-lost", names, message, cure))
    return said


def _name(method: MergeMethod) -> str:
    return type(method).__module__.rpartition(".")[2]
