"""merge: method, space and rank applied to all modules of the adapters, one module at a time."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from loraprobe.adapters import (
    Adapter,
    Composed,
    Extra,
    Source,
    adapter_of,
    check_apart,
    common_targets,
    copied_weight,
    extreme_norm,
    portable,
    public_name,
    same_weight,
)
from loraprobe.adapters.experts import conflict, owner_of, parameter_names
from loraprobe.compatibility import TensorChecks
from loraprobe.defaults import COMPRESSION_LIMIT
from loraprobe.errors import (
    AdapterError,
    CompatibilityError,
    OutputError,
    UnsupportedAdapter,
    UsageError,
)
from loraprobe.findings import accepted, finding
from loraprobe.formatting import listing, shortly
from loraprobe.lora.grams import Visitor, of_products
from loraprobe.lora.lowrank import LowRank
from loraprobe.lora.spaces import space_named
from loraprobe.lora.threads import Buffers, in_order
from loraprobe.merging._compress import (
    Compressed,
    MergedModule,
    SideBySide,
    compress_dense,
    compress_factors,
    rounding2,
)
from loraprobe.merging._extras import add_dora, merge_dora, merge_extras
from loraprobe.merging._method import (
    BaseTensors,
    FactorMethod,
    GramMethod,
    LinearMethod,
    MergeConfig,
    MergeInputs,
    MergeMethod,
)
from loraprobe.records import LOAD_ADAPTER, Issue, Progress, Severity
from loraprobe.registry import name_of, spec_of

# Projections are rounded to this resolution: coarser than rounding errors, fine enough to tell
# adapters apart.
RESOLUTION = 1024
LARGEST_WEIGHT = 1e6
LARGEST_NORM = 1e30  # of one rank of dW; times a weight it still fits into float32


@dataclass(frozen=True, eq=False)
class Merged(Composed):
    """An adapter made of others, and how it was made.

    norm: of the method's result before `rank` cuts it.
    compression_error: ||dW - dW_k||_F / ||dW||_F over the whole adapter, where dW is the method's
        result and dW_k what `rank` keeps of it; 0.0 where nothing above rounding was cut.
    rounding_error: the same ratio for writing the factors in their dtype.
    sketch_error: the same ratio for what the last round of a sketch of a large dense module still
        added, about what an exact SVD might keep in addition; 0.0 where no sketch was needed.
    inputs: from which the merge can be repeated.
    """

    inputs: MergeInputs
    adapter: Adapter
    norm: float
    compression_error: float
    rounding_error: float
    sketch_error: float
    issues: tuple[Issue, ...]

    library: ClassVar[str] = "peft"
    tag: ClassVar[str] = "merge"
    template: ClassVar[str] = "card.md.jinja"
    load: ClassVar[str] = LOAD_ADAPTER

    @property
    def name(self) -> str:
        return self.adapter.name

    @property
    def takes_weights(self) -> bool:
        return self.config.method.takes_weights

    @property
    def choices(self) -> dict[str, Any]:
        """From what a merge of the sources makes it again, as its card's front matter says it."""
        config = self.config
        return {
            "method": spec_of(config.method),
            "weights": [float(weight) for weight in self.weights],
            "space": None if config.space == "factors" else config.space,
            "rank": config.rank or "auto",
            "rank_layout": "portable",
            "dtype": str(self.adapter.dtype).removeprefix("torch."),
            "seed": config.seed,
        }

    @property
    def card_values(self) -> dict[str, Any]:
        """What its card shows beside its sources."""
        pairs = zip(self.sources, self.weights, strict=True)
        return {
            "method": spec_of(self.config.method, short=True),
            "space": self.config.space,
            "weights": ", ".join(f"{weight:g}" for weight in self.weights),
            "negated": [source.name for source, weight in pairs if weight < 0],
            "seed": self.config.seed,
            "rank": self.rank_text,
            "compression_error": self.compression_error,
            "rounding_error": self.rounding_error,
            "dtype": str(self.adapter.dtype).removeprefix("torch."),
        }

    @property
    def rank_text(self) -> str:
        """The rank of its modules, such as "8" or "4 to 16", and how they are written."""
        low, high = self.adapter.rank_range
        return str(low) if low == high else f"{low} to {high}, filled up with zeros to {high}"

    @property
    def config(self) -> MergeConfig:
        return self.inputs.config

    @property
    def weights(self) -> tuple[float, ...]:
        """Those that were used, one for each source."""
        return self.inputs.weights

    @property
    def rank(self) -> int:
        """The largest rank of a module."""
        return self.adapter.rank_range[1]

    @property
    def directories(self) -> tuple[Path, ...]:
        """Where the sources lie on this machine."""
        return tuple(a.source.path for a in self.inputs.adapters if a.source.path is not None)

    def __repr__(self) -> str:
        sources = shortly(source.name for source in self.sources)
        weights = ", ".join(f"{weight:g}" for weight in self.weights[:12])
        more = ", ..." if len(self.weights) > 12 else ""
        return (
            f"<Merged {shortly([self.name])}: {spec_of(self.config.method)} of {sources}, weights "
            f"{weights}{more}, space {self.config.space}, rank {self.rank}, "
            f"{self.compression_error:.2g} lost to the rank>"
        )

    def save(self, directory: str | Path, overwrite: bool = False) -> None:
        """Writes a PEFT directory, with `card` as its README.

        Raises OutputError, also where the directory is, contains or lies inside a source.
        """
        check_apart(Path(directory), self.directories)
        targets = common_targets(self.inputs.adapters, self.adapter.unstacked)
        self.written.save(directory, overwrite=overwrite, card=self.card, targets=targets)

    @property
    def at_full_rank(self) -> Merged:
        """The same for another format alone, which no rank cuts: without what the adapter loses."""
        issues = tuple(issue for issue in self.issues if issue.code != "compression-lost")
        return replace(
            self, issues=issues, compression_error=0.0, rounding_error=0.0, sketch_error=0.0
        )

    @property
    def written(self) -> Adapter:
        """The adapter as it is saved: at one rank in all modules, filled up with zeros."""
        return portable(self.adapter)


@torch.no_grad()
def merge(
    adapters: Sequence[Adapter],
    config: MergeConfig,
    *,
    base: BaseTensors | None = None,
    name: str | None = None,
    progress: Progress | None = None,
    visitor: Visitor | None = None,
) -> Merged:
    """Merge adapters of one base into one adapter, without the base where that is possible.

    A module that an adapter does not adapt counts as a zero delta; a module's rank is never larger
    than its numerical rank. A few modules of all adapters are in memory at a time, one if it is
    dense. name: of the result, that of the method if None. visitor: called with the Gram matrices
    of each module, so that diagnostics do not have to read the adapters again; modules are shown by
    several threads.

    base: its weights are needed by linear merges of DoRA adapters, its parameters for full weights,
    biases and token rows that not every adapter has, or whose weights do not sum to 1 (`_extras`).

    Raises UsageError, CompatibilityError, UnsupportedAdapter, AdapterError or OutOfMemory.
    """
    inputs = MergeInputs(adapters, config, weights_for(config, len(adapters)), base)
    issues = check_adapters(inputs)
    check_layout(inputs)
    inputs.require_memory()
    others, dropped = merge_extras(inputs)
    modules = _merge_modules(inputs, progress, visitor)
    parts = modules.values()
    contents, inner = TensorChecks(adapters), torch.stack([m.inner for m in parts])
    contents.add([*modules], inner, torch.ones(inner.shape[:2], dtype=torch.bool))
    if config.weights and not config.method.takes_weights:
        own = f"{name_of(config.method)} has weights of its own; those given were not used."
        issues.append(finding("weights-ignored", (), own))
    issues += [*dropped, *check_effect(contents, config.allow)]
    if not (any(m.norm2 for m in parts) or any(others.values())):
        raise UsageError(
            "The merge is zero in every module: the weights cancel, or the method keeps only what "
            "the adapters share and they share nothing; change the weights or the method."
        )
    merged = _adapter(name or name_of(config.method), inputs, modules, others)
    norm2, lost2 = sum(m.norm2 for m in parts), sum(m.lost2 for m in parts)
    lost = _share(lost2, norm2)
    norms = contents.inner.diagonal().clamp_min(0).sqrt().tolist()
    return Merged(
        inputs=inputs,
        adapter=merged,
        norm=math.sqrt(norm2),
        compression_error=lost,
        rounding_error=_share(sum(m.rounded2 for m in parts), norm2 - lost2),
        sketch_error=_share(sum(m.gained2 for m in parts), norm2),
        sources=tuple(a.summary(norm) for a, norm in zip(adapters, norms, strict=True)),
        issues=(*issues, *_warnings(adapters, lost)),
    )


def _share(part2: float, total2: float) -> float:
    """The ratio of two norms from their squares."""
    return math.sqrt(part2 / max(total2, 1e-300))


def _merge_modules(
    inputs: MergeInputs, progress: Progress | None, visitor: Visitor | None
) -> dict[str, MergedModule]:
    """Merge all modules, with the adapters ordered by their content.

    Factors are read here; modules are merged in several threads where each is small.
    """
    ordered, layout = inputs.ordered, inputs.layout
    place = torch.tensor(inputs.order).argsort().tolist()
    names, buffers = [adapter.name for adapter in ordered.adapters], Buffers()
    largest = max(adapter.rank_range[1] for adapter in ordered.adapters)

    @torch.no_grad()
    def merged(module: tuple[str, Sequence[LowRank]]) -> MergedModule:
        path, updates = module
        factors = SideBySide.of(updates, buffers)
        check_finite(factors, names, path)
        if visitor is not None:
            shown = [updates[i] if updates[i].rank else None for i in place]
            visitor(of_products(path, shown, factors.products(place), largest), [shown])
        one = _merge_module(ordered, path, updates, factors)
        return replace(one, inner=one.inner[place][:, place])

    read = ((path, ordered.updates(path)) for path in layout)
    in_turn = in_order if inputs.in_threads else map
    modules: dict[str, MergedModule] = {}
    for path, module in zip(layout, in_turn(merged, read), strict=True):
        modules[path] = module
        if progress:
            progress("merge", len(modules), len(layout))
    return modules


def _merge_module(
    inputs: MergeInputs, path: str, updates: Sequence[LowRank], factors: SideBySide
) -> MergedModule:
    """Merge one module: factors -> space -> method -> rank -> dtype, with what was lost.

    updates: those of all adapters, of rank 0 where one lacks the module; factors: the same side by
    side. Raises CompatibilityError for a base of another shape, OutputError where the result does
    not fit into the dtype.
    """
    if inputs.keeps_dora:
        merged = merge_dora(inputs, path, updates)
    else:
        exact = _compressed(inputs, path, factors)
        update = exact.update.to(inputs.dtype)
        rounded2 = rounding2(exact.update, update)
        merged = MergedModule(
            update, factors.inner, exact.norm2, exact.lost2, exact.gained2, rounded2
        )
    if not math.isfinite(merged.rounded2):
        dtype = str(inputs.dtype).removeprefix("torch.")
        raise OutputError(
            f"The merge does not fit into {dtype} in module {path}; write it in float32."
        )
    return merged


def _compressed(inputs: MergeInputs, path: str, factors: SideBySide) -> Compressed:
    """What the method makes of a module's factors, cut to the rank."""
    method, rank = inputs.config.method, inputs.config.rank
    if isinstance(method, GramMethod):
        return factors.combined(method.coefficients(inputs.weights, factors.inner), rank)
    made = _apply_method(inputs, path, factors)
    if isinstance(made, LowRank):
        return compress_factors(made, rank)
    start, drawn = factors.A.mT.to(made), _number(f"{inputs.config.seed}:{path}")
    return compress_dense(made, rank, sum(factors.ranks), start, drawn)


def _apply_method(inputs: MergeInputs, path: str, factors: SideBySide) -> LowRank | Tensor:
    """What the method makes of a module's factors; [out, in] where it has no factors."""
    config, method = inputs.config, inputs.config.method
    weights = torch.tensor(inputs.weights, dtype=torch.float64)
    if isinstance(method, GramMethod):
        return factors.total(method.coefficients(inputs.weights, factors.inner))
    if isinstance(method, FactorMethod):
        return method.combined(factors.updates(torch.float64), weights)
    work = torch.float32 if config.dense and not factors.double else torch.float64
    space = "core" if config.space == "full" and not config.dense else config.space
    stacked = space_named(space).stacked(factors.updates(work))
    generators = list[torch.Generator]()
    if method.takes_generators:
        generators = seeded_generators(factors.updates(torch.float64), path, config.seed)
    return stacked.back(method(stacked.matrices, weights.to(work), generators))


@torch.no_grad()
def add_change(inputs: MergeInputs, path: str, weight: Tensor) -> Tensor:
    """The weight of a merged model, from that of the base: [out, in], which may be written over.

    The change is added as it is if the rank of the merge is "auto", else as the rank cuts it. Its
    factors are not rounded to a dtype.
    """
    ordered = inputs.ordered
    updates = ordered.updates(path)
    if ordered.keeps_dora:
        return add_dora(ordered, path, updates, weight)
    factors = SideBySide.of(updates)
    made = _apply_method(ordered, path, factors)
    if ordered.config.rank is not None:
        made = _compressed(ordered, path, factors).update
    if isinstance(made, LowRank):
        made = made.folded().to(weight.dtype)
        return weight.addmm_(made.B, made.A)
    return weight.add_(made)


def seeded_generators(updates: Sequence[LowRank], module: str, seed: int) -> list[torch.Generator]:
    """One generator per delta of a module, seeded by seed, module and the direction of the delta.

    So random masks depend on the content of an adapter and not on its place in the list. The
    direction is given by three projections u^T dW v / ||dW||_F on fixed random u, v. A change
    of basis or a positive factor does not change them. They are rounded, so that rounding errors
    do not matter either, except for a projection within about 1e-7 of a rounding step.
    """
    made = []
    for update in updates:
        draw = torch.Generator().manual_seed(_number(f"0:{module}"))
        u = torch.randn(update.out_features, 3, generator=draw, dtype=torch.float64)
        v = torch.randn(update.in_features, 3, generator=draw, dtype=torch.float64)
        exact = update.to(torch.float64)
        projections = ((u.mT @ exact.B).mT * (exact.A @ v)).sum(0) * exact.scaling
        direction = projections / exact.norm().clamp_min(torch.finfo(torch.float64).tiny)
        rounded = (direction * RESOLUTION).round().to(torch.int64).tolist()
        made.append(torch.Generator().manual_seed(_number(f"{seed}:{module}:{rounded}")))
    return made


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _common_parameters(adapters: Sequence[Adapter]) -> list[str] | None:
    """The `target_parameters` of a merge of adapters; None if none has experts.

    It is the adapters' own list if they agree, because peft loads only adapters with equal lists
    side by side; otherwise it has the full name of each parameter.
    """
    holders = [adapter for adapter in adapters if adapter.stacks]
    lists = {tuple(sorted(set(a.config.get("target_parameters") or ()))) for a in holders}
    if len(lists) <= 1:
        return list(lists.pop()) if lists else None
    owners = {(a, owner_of(stack)[0]) for a in holders for stack in a.stacks}
    return sorted({f"{o}.{name}" for a, o in owners for name in parameter_names(a.config, o)})


def _adapter(
    name: str,
    inputs: MergeInputs,
    modules: Mapping[str, MergedModule],
    others: Mapping[str, Any],
) -> Adapter:
    """The merged adapter in memory, with the base and task type that the sources agree on."""
    adapters = inputs.adapters
    bases = [a.base_model for a in adapters if a.base_model]
    same_base = [a for a in adapters if bases and a.base_model == bases[0]]
    config = {key: _agreed(adapters, key) for key in ("task_type", "auto_mapping")}
    config["target_parameters"] = _common_parameters(adapters)
    config["revision"] = _agreed(same_base, "revision")
    made_of = ", ".join(a.source.public for a in adapters)
    return adapter_of(
        name,
        {path: m.update for path, m in modules.items()},
        kinds={path: info.kind for path, info in inputs.layout.items()},
        kernels={path: info.kernel for path, info in inputs.layout.items() if info.kernel},
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


def _warnings(adapters: Sequence[Adapter], lost: float) -> Iterator[Issue]:
    """Warnings about the result: sources of several bases, a rank that loses much."""
    names = tuple(a.name for a in adapters)
    bases = sorted({public_name(a.base_model) or "a path" for a in adapters if a.base_model})
    if len(bases) > 1:
        message = f"The sources name different bases ({', '.join(bases)}); the first's is kept."
        cure = "Merge adapters of one base."
        yield finding("base-mismatch", names, message, severity="warning", cure=cure)
    if lost > COMPRESSION_LIMIT:
        message = f"The rank loses {lost:.0%} of the merged delta (Frobenius norm)."
        yield finding("compression-lost", names, message)


def weights_for(config: MergeConfig, n: int) -> tuple[float, ...]:
    """The weights to use for n adapters: the given ones, or those of the method.

    Raises UsageError for weights, or a number of adapters, that the method does not take.
    """
    weights = config.method.default_weights(n)
    if config.weights:
        largest = max(config.weights, key=abs)
        if abs(largest) > LARGEST_WEIGHT:
            raise UsageError(
                f"A weight of {largest:g} is beyond {LARGEST_WEIGHT:g}, at which the others vanish "
                "in that adapter's rounding; give smaller weights."
            )
        if config.method.takes_weights:
            weights = config.weights
    config.method.check(weights)
    return weights


# What is known before factors are read.


def check_adapters(inputs: MergeInputs) -> list[Issue]:
    """The findings of the adapters, for the report, and those that the inputs allow.

    Raises UnsupportedAdapter for an error found on reading and for an extra that would be lost,
    unless the inputs allow their codes; CompatibilityError for stacked parameters that one file
    cannot hold together.
    """
    notes = []
    for adapter in inputs.adapters:
        for issue in (one for one in adapter.issues if one.severity == "error"):
            note = accepted(issue, inputs.config.allow)
            if note.severity == "error":
                message = f"Adapter {adapter.name}: {issue.message}"
                raise UnsupportedAdapter(message, issue.cure)
            notes.append(note)
        if not adapter.modules:
            raise UnsupportedAdapter(
                f"Adapter {adapter.name} has no LoRA factors that can be merged."
            )
        for extra in adapter.extras:
            if extra.kind != "base_copy" and extra.kind not in inputs.carried:
                _check_dropped(adapter, extra, inputs.config.method, inputs.config.allow)
                told = f"Allowed: {extra} was dropped."
                notes.append(Issue("warning", extra.code, (adapter.name,), told, "", extra.module))
    notes += _base_copies(inputs)
    for one, other in combinations(inputs.adapters, 2):
        if problem := conflict(one, other):
            raise CompatibilityError(problem.message, problem.cure)
    for one, other in permutations(inputs.adapters, 2):
        owners = {owner_of(stack)[0] for stack in one.stacks}
        if shared := sorted(owners & other.layout.keys()):
            raise CompatibilityError(
                f"{one.name} changes a parameter of {shared[0]} (target_parameters) and "
                f"{other.name} has a LoRA of this module, which peft cannot hold in one file; "
                "leave one out."
            )
    return notes


def check_layout(inputs: MergeInputs) -> None:
    """Raises CompatibilityError if two adapters disagree about a module's shape or kind.

    Also if a method that acts on factors lacks equal ones.
    """
    on_factors = isinstance(inputs.config.method, FactorMethod)
    bases = "they belong to different base models, so merge adapters of one base"
    first: dict[str, Adapter] = {}
    for adapter in inputs.adapters:
        for path, own in adapter.layout.items():
            known = first.setdefault(path, adapter)
            before = known.layout[path]
            kinds = (before.kind, own.kind) if "embedding" in (before.kind, own.kind) else ("", "")
            ranks = (before.rank, own.rank) if on_factors else (0, 0)
            shapes = ([i.out_features, i.in_features] for i in (before, own))
            for what, (one, other), cure in (
                ("is", shapes, bases),
                ("is of kind", kinds, bases),
                ("has the kernel", (before.kernel, own.kernel), bases),
                ("has rank", ranks, "average factors of one rank, or use uniform, which takes any"),
            ):
                if one != other:
                    raise CompatibilityError(
                        f"Module {path} {what} {one} in {known.name} and {other} in "
                        f"{adapter.name}; {cure}."
                    )
    for path in inputs.layout if on_factors else ():
        for adapter in inputs.adapters:
            if path not in adapter.layout:
                raise CompatibilityError(
                    f"Adapter {adapter.name} leaves module {path} alone, so it has no factors "
                    "to average there; use uniform, which counts it as zero."
                )


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
        why = "whose merge needs the base's weights; add --base=DIR or --base=auto"
    elif extra.kind in LinearMethod.carried:
        why = (
            "which only a linear method keeps; take uniform, sum or task_arithmetic, merge the "
            "adapter into its base with peft first"
        )
    raise UnsupportedAdapter(
        f"Adapter {adapter.name} holds {extra}, {why}, or add --allow={extra.code} to drop it "
        "knowingly."
    )


def _base_copies(inputs: MergeInputs) -> list[Issue]:
    """Copies of frozen base weights are dropped if all adapters that hold one hold the same."""
    held: dict[str, list[tuple[Adapter, Extra]]] = {}
    for adapter in inputs.adapters:
        for extra in adapter.extras:
            if extra.kind == "base_copy":
                held.setdefault(extra.module or extra.key, []).append((adapter, extra))
    notes = []
    for module, copies in held.items():
        names = tuple(adapter.name for adapter, _ in copies)
        same = len(copies) == 1 or (
            all(adapter.weights_file is not None for adapter, _ in copies)
            and all(
                same_weight(copied_weight(*one), copied_weight(*other))
                for one, other in combinations(copies, 2)
            )
        )
        if not same and "base-copy" not in inputs.config.allow:
            raise UnsupportedAdapter(
                f"Adapters {listing(names)} hold different copies of the base's weight of "
                f"{module}, so they were trained on different bases or with resized vocabularies; "
                "merge adapters of one base, or add --allow=base-copy to keep the base's own."
            )
        message = (
            f"The copy of the base's weight of {module} was not written; it is the base's own "
            "unless the vocabulary was resized."
        )
        cure = "After a resize, add the new rows to the base first."
        severity: Severity = "note" if same else "warning"
        notes.append(finding("base-copy", names, message, module, severity=severity, cure=cure))
    return notes


# What factors show.


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


def check_effect(contents: TensorChecks, allow: Collection[str]) -> list[Issue]:
    """Adapters without an effect, equal adapters, and extreme deltas.

    Raises UnsupportedAdapter for an adapter all of whose deltas are zero, unless allowed.
    """
    adapters, notes = contents.adapters, list[Issue]()
    for name in (adapters[i].name for i in contents.idle):
        message = f"Adapter {name} has no effect (all of its deltas are zero)"
        note = accepted(finding("no-effect", (name,), f"{message}.", cure=""), allow)
        if note.severity == "error":
            raise UnsupportedAdapter(
                f"{message}; it was never trained or its weights were not saved, so leave it out."
            )
        notes.append(note)
    for i, j in contents.equal:
        names = adapters[i].name, adapters[j].name
        message = f"{names[0]} and {names[1]} are the same update."
        notes.append(finding("duplicate", names, message))
    for adapter, largest in zip(adapters, contents.largest, strict=True):
        notes += extreme_norm(adapter.name, *largest)
    return notes
