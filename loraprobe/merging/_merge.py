"""merge: method, space and rank brought together, one module at a time."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from loraprobe.adapter import Adapter, ModuleInfo, check_apart
from loraprobe.errors import OutputError, UsageError
from loraprobe.lowrank import LowRank
from loraprobe.merging import _checks
from loraprobe.merging._compress import Compressed, SideBySide, compress_dense, compress_factors
from loraprobe.merging._method import FactorMethod, GramMethod, LinearMethod, MergeMethod
from loraprobe.merging._room import check_room
from loraprobe.merging._scaled import Weight, check_weight, merge_scaled
from loraprobe.merging._seeds import generators, module_seed
from loraprobe.merging._shelf import METHODS
from loraprobe.merging._totals import Totals
from loraprobe.merging._whole import Parameter, merge_offsets, merge_whole
from loraprobe.merging._written import said, written
from loraprobe.records import AdapterSummary, Issue
from loraprobe.shelf import spec_of
from loraprobe.spaces import Stacked, space_named

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Merged:
    """An adapter made of others, and how it was made.

    compression_error: ||dW - dW_k||_F / ||dW||_F over the whole adapter, dW what the method gives
        and dW_k what `rank` keeps of it; 0.0 where nothing above rounding was cut.
    rounding_error: the same ratio for writing the factors in their dtype.
    sketch_error: the same ratio for what the last round of a sketch of a large dense module still
        found, about what an exact SVD might keep beside; 0.0 where no sketch was needed.
    rank: the largest rank of a module. weights: those that were used. spec, asked_rank: the method
        and the rank (None for "auto") from which the merge can be repeated. license: what its card
        declares.
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
    license: str | None = None

    @property
    def name(self) -> str:
        return self.adapter.name

    def save(self, directory: str | Path, overwrite: bool = False) -> None:
        """Writes a PEFT directory, with `card` as its README. Raises OutputError, also where that
        would be written over a source."""
        check_apart(Path(directory), (Path(source.reference) for source in self.sources))
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
    weight: Weight | None = None  # of the base, where DoRA needs it

    def coefficients(self) -> tuple[float, ...]:
        """What a linear method multiplies each adapter with."""
        assert isinstance(self.method, LinearMethod)
        return self.method.coefficients(self.weights, len(self.weights))


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
    base_weight: Weight | None = None,
    base_parameter: Parameter | None = None,
) -> Merged:
    """Merge adapters of one base into one adapter, without the base where that is possible.

    weights: one per adapter, used as given and never normalised; default_weights of the method if
    None. space: "full", "core" or "knots"; the method's default if None. rank: a number, or "auto"
    for as many as needed to lose nothing, at most the sum of the sources' ranks. A module that
    some adapters leave alone counts as a zero delta there; a module's rank is never larger than
    its numerical rank. dtype: of the written factors, the widest of the sources' if None. allow:
    codes of issues to accept. One module of all adapters is in memory at a time.

    base_weight: module path -> W0 [out, in], which linear merges of DoRA adapters need (`_scaled`);
    base_parameter: parameter name -> tensor as stored, for whole modules and biases that not every
    adapter has, or whose weights do not sum to 1 (`_whole`).

    Raises UsageError, CompatibilityError, UnsupportedAdapter, AdapterError, OutOfMemory, each
    with the cure.
    """
    _checks.check_names(adapters)
    plan, more = _plan(adapters, method, weights, space, rank, seed, dtype)
    carried = _checks.carried_by(plan.method, base_weight is not None)
    notes = _checks.check_adapters(adapters, allow, carried)
    if "dora_magnitude" in carried and any(a.magnitudes for a in adapters):
        plan = replace(plan, weight=base_weight)
    infos = _checks.layout(adapters, plan.method)
    check_room(adapters, infos, plan.method, plan.space, plan.rank, plan.dtype.itemsize)
    totals = Totals.of(len(adapters))
    whole, offsets, dropped = _beside(adapters, plan, infos, base_parameter, allow)
    for done, (path, updates) in enumerate(_streamed(adapters, infos)):
        _merge_module(path, updates, adapters, plan, totals)
        if progress:
            progress("merge", done + 1, len(infos))
    norms = totals.inner.diagonal().clamp_min(0).sqrt().tolist()
    notes += more + dropped + _checks.check_effect(adapters, totals.inner, allow)
    notes += totals.extremes(adapters)
    if totals.merged == 0 and not whole and not offsets:
        raise UsageError(
            "The merge is zero in every module: the weights cancel, or the method keeps only what "
            "the adapters share and they share nothing; change the weights or the method."
        )
    merged2 = max(totals.merged, 1e-300)
    lost = math.sqrt(totals.lost / merged2)
    notes += said(adapters, lost)
    return Merged(
        adapter=written(
            name or _name(plan.method),
            adapters,
            infos,
            totals.modules,
            magnitudes=totals.magnitudes,
            whole=whole,
            offsets=offsets,
        ),
        method=repr(plan.method),
        space=plan.space,
        rank=max(update.rank for update in totals.modules.values()),
        compression_error=lost,
        rounding_error=math.sqrt(totals.rounded / max(totals.merged - totals.lost, 1e-300)),
        sources=tuple(a.summary(norm) for a, norm in zip(adapters, norms, strict=True)),
        issues=tuple(notes),
        weights=plan.weights,
        seed=seed,
        sketch_error=math.sqrt(totals.gained / merged2),
        spec=spec_of(plan.method),
        asked_rank=plan.rank,
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


def _beside(
    adapters: Sequence[Adapter],
    plan: _Plan,
    infos: Mapping[str, ModuleInfo],
    parameter: Parameter | None,
    allow: Collection[str],
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Issue]]:
    """Whole parameters, biases of B, and what is said about those that were dropped."""
    if not isinstance(plan.method, LinearMethod):
        return {}, {}, []
    whole, notes = merge_whole(adapters, plan.coefficients(), parameter, allow)
    return whole, merge_offsets(adapters, plan.coefficients(), infos), notes


def _merge_module(
    path: str, updates: list[LowRank], adapters: Sequence[Adapter], plan: _Plan, totals: Totals
) -> None:
    joint = SideBySide.of(updates)
    diagonals = torch.stack([gram.diagonal() for gram in joint.grams])
    _checks.check_finite(diagonals, joint.ranks, [a.name for a in adapters], path)
    if plan.weight is not None:
        _merge_scaled(path, updates, adapters, plan, totals)
        return
    totals.see(path, joint.inner())
    compressed = _computed(path, joint, plan)
    update = compressed.update.to(plan.dtype)
    _add(path, update, _rounding2(compressed.update, update), compressed, plan, totals)


def _merge_scaled(
    path: str, updates: list[LowRank], adapters: Sequence[Adapter], plan: _Plan, totals: Totals
) -> None:
    """One module of DoRA adapters: a direction and its magnitudes."""
    assert plan.weight is not None
    weight = plan.weight(path)
    check_weight(path, updates[0], weight)
    magnitudes = [a.magnitudes.get(path) for a in adapters]
    merged = merge_scaled(updates, magnitudes, plan.coefficients(), weight, plan.rank)
    totals.see(path, merged.inner)
    direction, totals.magnitudes[path] = merged.written(weight, plan.dtype)
    rounded = _rounding2(merged.kept.update, merged.effective(direction))
    _add(path, direction, rounded, merged.kept, plan, totals)


def _add(
    path: str, update: LowRank, rounded: float, made: Compressed, plan: _Plan, totals: Totals
) -> None:
    """One module's result and its share of the errors."""
    if not math.isfinite(rounded):
        raise OutputError(
            f"The merge does not fit into {str(plan.dtype).removeprefix('torch.')} in module "
            f"{path}; write it in float32."
        )
    totals.modules[path] = update
    totals.merged += made.norm2
    totals.lost += made.lost2
    totals.rounded += rounded
    totals.gained += made.gained2


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
    dense = plan.space == "full" and "core" not in method.lossless
    work = torch.float32 if dense and not joint.double else torch.float64
    # Where nothing is lost in core, the full space has the same result and dense matrices.
    stack = plan.stack if dense or plan.space == "knots" else space_named("core")
    assert stack is not None
    stacked = stack(joint.updates(work))
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


def _name(method: MergeMethod) -> str:
    return type(method).__module__.rpartition(".")[2]
