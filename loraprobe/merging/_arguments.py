"""One merge: its adapters and choices, what is refused, and what is reported instead of hidden.

Each error names the cure, and nothing is dropped silently.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, permutations
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float64
from torch import Tensor

from loraprobe import memory
from loraprobe.adapters import Adapter, Extra, ModuleInfo, copied_weight, same_weight
from loraprobe.adapters.experts import conflict, owner_of
from loraprobe.errors import AdapterError, CompatibilityError, UnsupportedAdapter, UsageError
from loraprobe.findings import finding
from loraprobe.formatting import listing
from loraprobe.lora.lowrank import LowRank, same_update
from loraprobe.lora.workers import workers
from loraprobe.merging._compress import SideBySide
from loraprobe.merging._method import FactorMethod, LinearMethod, MergeMethod
from loraprobe.records import Issue, Severity
from loraprobe.registry import name_of

LARGEST_WEIGHT = 1e6
LARGEST_NORM = 1e30  # of one rank of dW; times a weight it still fits into float32
# Matrices of a module's size in addition to the n deltas and the n selections of their entries: the
# result, a scratch matrix, and the remainder of the sketch.
MORE_MATRICES = 3


@runtime_checkable
class BaseTensors(Protocol):
    """The tensors of a base: W0 [out, in] of a module, and a parameter by its name, as stored."""

    def weight(self, module_path: str) -> Tensor: ...

    def parameter(self, name: str) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class MergeArguments:
    """One merge, in which nothing is left to a default.

    rank: None for as many components as needed. dtype: of the written factors. allow: codes of
    issues that are accepted.
    """

    adapters: Sequence[Adapter]
    method: MergeMethod
    weights: tuple[float, ...]
    space: str
    rank: int | None
    seed: int
    dtype: torch.dtype
    base: BaseTensors | None = None
    allow: Collection[str] = ()

    @functools.cached_property
    def layout(self) -> Mapping[str, ModuleInfo]:
        """All modules that any adapter adapts, in the order in which the adapters list them."""
        found: dict[str, ModuleInfo] = {}
        for path, info in (item for a in self.adapters for item in a.layout.items()):
            # conv1d and linear differ in a flag that peft sets by the layer
            if path not in found or (found[path].kind, info.kind) == ("linear", "conv1d"):
                found[path] = info
        return found

    @functools.cached_property
    def order(self) -> list[int]:
        """The indices of the adapters, ordered by their content.

        In this order they are merged, so that the order in which they are given changes no bit of
        the result, even where it depends on rounding: the sign of a sum that cancels, or the basis
        of a space with equal singular values.
        """
        given = self.adapters
        return sorted(range(len(given)), key=lambda i: (given[i].sha256, given[i].name))

    @functools.cached_property
    def ordered(self) -> MergeArguments:
        """The same merge with its adapters in `order`."""
        return replace(
            self,
            adapters=[self.adapters[i] for i in self.order],
            weights=tuple(self.weights[i] for i in self.order),
        )

    def updates(self, path: str) -> list[LowRank]:
        """The updates of all adapters for a module, of rank 0 where one lacks it."""
        info = self.layout[path]
        absent = LowRank(torch.zeros(0, info.in_features), torch.zeros(info.out_features, 0))
        return [adapter.modules.get(path, absent) for adapter in self.adapters]

    @property
    def carried(self) -> frozenset[str]:
        """The kinds of extra that the merge keeps."""
        return self.method.carried - ({"dora_magnitude"} if self.base is None else frozenset())

    @property
    def keeps_dora(self) -> bool:
        """Whether the result is a DoRA adapter, which needs the base."""
        return "dora_magnitude" in self.carried and any(a.magnitudes for a in self.adapters)

    @property
    def coefficients(self) -> tuple[float, ...]:
        """The factor of each adapter under a linear method; () under another."""
        if not isinstance(self.method, LinearMethod):
            return ()
        return self.method.coefficients(self.weights)

    @property
    def dense(self) -> bool:
        """Whether the method runs on deltas of full size [out, in].

        Where nothing is lost in `core`, the full space has the same result without them.
        """
        return self.space == "full" and "core" not in self.method.lossless

    @property
    def in_threads(self) -> bool:
        """Whether several modules are merged at once: not dense ones, nor those of DoRA."""
        return not (self.dense or self.keeps_dora)

    def require_memory(self) -> None:
        """Raises OutOfMemory, naming the largest module and what would fit; no factor is read.

        Counted are the result's factors of all modules, [rank, in] and [out, rank] in the written
        dtype, and for each module that is merged at the same time all factors in float64, twice.
        Where the method works on dense deltas, that is one module, and 2 n + 3 matrices [out, in]
        in float32 (float64 where that is the written dtype) are added.
        """
        kept, needs, together = 0, dict[str, int](), workers() if self.in_threads else 1
        for path, info in self.layout.items():
            rank = sum(a.layout[path].rank for a in self.adapters if path in a.layout)
            width = info.in_features + info.out_features
            kept += (self.rank or rank) * width * self.dtype.itemsize
            needs[path] = 16 * rank * width * together
            if self.dense:
                matrix = info.out_features * info.in_features * max(self.dtype.itemsize, 4)
                needs[path] += (2 * len(self.adapters) + MORE_MATRICES) * matrix
        largest = max(needs, key=lambda path: needs[path])
        info = self.layout[largest]
        memory.require(
            kept + needs[largest],
            f"The merge (largest module {largest}, [{info.out_features}, {info.in_features}])",
            "take --space=core or knots, which stay small, or a method in factors such as uniform"
            if self.dense
            else "give a smaller --rank, or fewer adapters at a time",
        )


# The choices of a merge.


def weights_for(
    method: MergeMethod, given: Sequence[float] | None, n: int
) -> tuple[tuple[float, ...], list[Issue]]:
    """The weights to use, as given or the method's own, and a note if given ones are not used."""
    weights, notes = method.default_weights(n), []
    if given is not None:
        largest = max(given, key=abs)
        if abs(largest) > LARGEST_WEIGHT:
            raise UsageError(
                f"A weight of {largest:g} is beyond {LARGEST_WEIGHT:g}, at which the others vanish "
                "in that adapter's rounding; give smaller weights."
            )
        if method.takes_weights:
            weights = tuple(map(float, given))
        else:
            message = f"{name_of(method)} has weights of its own; those given were not used."
            notes = [finding("weights-ignored", (), message)]
    method.check(weights)
    return weights, notes


def space_for(method: MergeMethod, given: str | None) -> str:
    """The space as given, or the method's default."""
    if given is None:
        return method.default_space()
    if isinstance(method, FactorMethod):
        raise UsageError(
            f"{name_of(method)} acts on the factors as stored and has no space to choose; leave it "
            "out."
        )
    return given


# What is known before factors are read.


def check_adapters(arguments: MergeArguments) -> list[Issue]:
    """The findings of the adapters, for the report, and those that the arguments allow.

    Raises UnsupportedAdapter for an error found on reading and for an extra that would be lost,
    unless the arguments allow their codes; CompatibilityError for stacked parameters that one file
    cannot hold together.
    """
    notes = []
    for adapter in arguments.adapters:
        for issue in (one for one in adapter.issues if one.severity == "error"):
            if issue.code not in arguments.allow:
                message = f"Adapter {adapter.name}: {issue.message} {issue.cure}".strip()
                raise UnsupportedAdapter(message)
            notes.append(replace(issue, severity="warning", message=f"Allowed: {issue.message}"))
        if not adapter.modules:
            raise UnsupportedAdapter(
                f"Adapter {adapter.name} has no LoRA factors that can be merged."
            )
        for extra in adapter.extras:
            if extra.kind != "base_copy" and extra.kind not in arguments.carried:
                _check_dropped(adapter, extra, arguments.method, arguments.allow)
                told = f"Allowed: {extra} was dropped."
                notes.append(Issue("warning", extra.code, (adapter.name,), told, "", extra.module))
    notes += _base_copies(arguments)
    for one, other in combinations(arguments.adapters, 2):
        if problem := conflict(one, other):
            raise CompatibilityError(f"{problem.message} {problem.cure}")
    for one, other in permutations(arguments.adapters, 2):
        owners = {owner_of(stack)[0] for stack in one.stacks}
        if shared := sorted(owners & other.layout.keys()):
            raise CompatibilityError(
                f"{one.name} changes a parameter of {shared[0]} (target_parameters) and "
                f"{other.name} has a LoRA of this module, which peft cannot hold in one file; "
                "leave one out."
            )
    return notes


def check_layout(arguments: MergeArguments) -> None:
    """Raises CompatibilityError if two adapters disagree about a module's shape or kind.

    Also if a method that acts on factors lacks equal ones.
    """
    on_factors = isinstance(arguments.method, FactorMethod)
    bases = "they belong to different base models, so merge adapters of one base"
    first: dict[str, Adapter] = {}
    for adapter in arguments.adapters:
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
    for path in arguments.layout if on_factors else ():
        for adapter in arguments.adapters:
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


def _base_copies(arguments: MergeArguments) -> list[Issue]:
    """Copies of frozen base weights are dropped if all adapters that hold one hold the same."""
    held: dict[str, list[tuple[Adapter, Extra]]] = {}
    for adapter in arguments.adapters:
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
        if not same and "base-copy" not in arguments.allow:
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


def check_effect(arguments: MergeArguments, inner: Float64[Tensor, "n n"]) -> list[Issue]:
    """Adapters without an effect and equal adapters, from inner products of whole adapters [n, n].

    Raises UnsupportedAdapter for an adapter all of whose deltas are zero, unless allowed.
    """
    notes = []
    plain = [(i, a.name) for i, a in enumerate(arguments.adapters) if not a.has_more_than_factors]
    for i, name in plain:
        if inner[i, i] > 0:
            continue
        message = f"Adapter {name} has no effect (all of its deltas are zero)"
        if "no-effect" not in arguments.allow:
            raise UnsupportedAdapter(
                f"{message}; it was never trained or its weights were not saved, so leave it out."
            )
        allowed = f"Allowed: {message}."
        notes.append(finding("no-effect", (name,), allowed, severity="warning", cure=""))
    for (i, name), (j, other) in combinations(plain, 2):
        if same_update(inner, i, j):
            message = f"{name} and {other} are the same update."
            notes.append(finding("duplicate", (name, other), message))
    return notes
