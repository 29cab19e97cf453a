"""The systems of an evaluation, built from specs such as `ties` or `arrow:top_k=1`.

The base and the single adapters, which a composition has to beat, are evaluated as they were
trained. Merges and routers use the adapters that `transforms.prepare` returns.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from loraprobe.adapters import Adapter, Modules, Source
from loraprobe.base import Base
from loraprobe.composition import Composition, Router, change_norm
from loraprobe.errors import BaseError, LoraprobeError, UsageError
from loraprobe.evaluation import System
from loraprobe.formatting import nearest
from loraprobe.lora.lowrank import LowRank
from loraprobe.merging import METHODS, LinearMethod, check_kept
from loraprobe.options import Options
from loraprobe.pipeline.portfolio import Selection
from loraprobe.pipeline.transforms import Prepared, merge_by
from loraprobe.registry import name_of
from loraprobe.routing import ROUTERS
from loraprobe.routing.constant import ConstantGates, single
from loraprobe.tasks import Task

FIXED = ("base", "chain", "shrunk", "random-partner")  # systems that are no method and no router


def baseline_systems(adapters: Sequence[Adapter]) -> list[System]:
    """The base and each adapter alone, which are always evaluated."""
    return [System("base", "base"), *(System(a.name, "adapter", single(a)) for a in adapters)]


def check_systems(adapters: Sequence[Adapter], options: Options) -> None:
    """Checks the systems before anything is loaded.

    Raises UsageError for a `--system` that does not exist, for a method that does not accept these
    weights or this number of adapters, and for an adapter with the name of a system, since results
    are stored by name.
    """
    named = [s for s in options.systems if s in METHODS or s in ROUTERS]
    taken = {*options.methods, *options.routers, *named, "task_arithmetic"}
    for adapter in adapters:
        if adapter.name in taken or adapter.name.startswith("shrunk:"):
            raise UsageError(
                f"The adapter name {adapter.name!r} is that of a system of its own: give the "
                f"adapter another one, as in my-{adapter.name.partition(':')[0]}=REF."
            )
    others = {*FIXED, *(a.name for a in adapters)}
    for spec in options.systems:
        if spec not in others and spec not in named:
            known = sorted({*others, *METHODS.names(), *ROUTERS.names()})
            raise UsageError(f"Unknown system {spec!r}: {nearest(spec, known)}")
    for spec in (*options.methods, *named):
        if spec in METHODS:
            _check_weights(spec, options, len(adapters))
            check_kept(adapters, METHODS.make(spec), options.allow)


def _check_weights(spec: str, options: Options, n: int) -> None:
    """Raises UsageError where a method does not take the weights, as far as they are known."""
    method = METHODS.make(spec)
    method.check(options.given_weights or method.default_weights(n))
    if options.weights == "search" and method.takes_weights:
        try:
            method.check([(-1.0) ** i for i in range(n)])
        except UsageError:
            raise UsageError(
                f"A search may find negative weights, which {name_of(method)} does not take; "
                "search for task_arithmetic, or give weights."
            ) from None


def summed_specs(options: Options, adapters: Sequence[Adapter]) -> list[str]:
    """The merges that add adapters as they were trained, at gates of 1: they can be forecast."""
    if options.balance != "none" or options.subtract:
        return []
    n, weights = len(adapters), options.given_weights
    return [
        spec
        for spec in Selection(options, adapters).specs
        if spec in METHODS
        and not (options.weights == "search" and METHODS.make(spec).takes_weights)
        and constant_gates(spec, options, weights, n) == (1.0,) * n
    ]


def constant_gates(
    spec: str, options: Options, weights: Sequence[float] | None, n: int
) -> tuple[float, ...] | None:
    """The gates of n experts that compute what a linear merge does.

    None for other methods, and where a space or a rank is asked for: those need new weights.
    """
    method = METHODS.make(spec)
    if not isinstance(method, LinearMethod) or options.rank != "auto" or options.space is not None:
        return None
    return tuple(map(float, method.coefficients(weights or method.default_weights(n))))


@dataclass(frozen=True)
class SystemBuilder:
    """Builds compositions of adapters from specs.

    trained: the adapters as they were trained; prepared: those that are merged and routed.
    searched: weights that a search found. routers: those that were fitted to prompts, by spec.
    """

    trained: Sequence[Adapter]
    prepared: Prepared
    options: Options
    base: Base | None = None
    searched: tuple[float, ...] | None = None
    routers: Mapping[str, Router] = field(default_factory=dict)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """The weights that were found or given; None for each method's default."""
        return self.searched or self.options.given_weights

    def chosen(self, tasks: Sequence[Task]) -> Selection:
        """What the options ask for of the adapters and these tasks."""
        return Selection(self.options, self.trained, tasks)

    def compositions(self, tasks: Sequence[Task] = ()) -> list[System]:
        """All compositions that the options ask for of these tasks."""
        return [self.build(spec) for spec in self.specs(tasks)]

    def specs(self, tasks: Sequence[Task] = ()) -> list[str]:
        """The specs of `compositions`, without an added router that could not be fitted."""
        chosen = self.chosen(tasks)
        unfitted = chosen.learning.keys() - self.routers.keys()
        unfitted &= {one.spec for one in chosen.added}
        return [spec for spec in chosen.specs if spec not in unfitted]

    def build(
        self, spec: str, adapters: Sequence[Adapter] | None = None, name: str | None = None
    ) -> System:
        """A merge method, a router or "chain" over adapters (the prepared ones unless given)."""
        experts = tuple(self.prepared.adapters if adapters is None else adapters)
        if spec == "chain":
            return System("chain", "chain", chain=tuple(map(single, self.trained)))
        if spec in METHODS:
            return self._merge(spec, experts, name or spec)
        if spec in ROUTERS:
            router = self.routers.get(spec) or ROUTERS.make(spec)
            return System(name or spec, "router", Composition(name or spec, experts, router))
        raise UsageError(f"{spec!r} is neither a merge method nor a router.")

    def build_each(self, specs: Mapping[str, str]) -> tuple[list[System], list[str]]:
        """The systems of specs that can be built, and a note on each other one. specs: by name."""
        systems, notes = list[System](), list[str]()
        for name, spec in specs.items():
            try:
                systems.append(self.build(spec, name=name))
            except LoraprobeError as error:
                notes.append(f"{name} was not tried: {error}")
        return systems, notes

    def _merge(self, spec: str, experts: tuple[Adapter, ...], name: str) -> System:
        """Linear merges are constant gates over the experts; others need new weights."""
        gates = constant_gates(spec, self.options, self.weights, len(experts))
        if gates is not None:
            composition = Composition(name, experts, ConstantGates(gates))
            return System(name, "merge", composition, compression_error=0.0)
        merged = merge_by(
            spec, self.prepared, self.options, self.base, self.weights, experts, name=name
        )
        alone, error = single(merged.adapter), merged.compression_error
        return System(name, "merge", alone, compression_error=error, merged=merged)

    def controls(self, best_single: str, best: System | None) -> list[System]:
        """`shrunk:NAME` and `random-partner`, which a composition has to beat.

        The random partners are composed with the weights of the best composition. If a search found
        them, another search for the control would cost as much again.
        """
        n, options = len(self.trained), self.options
        if n < 2:
            return []
        chosen = next(a for a in self.trained if a.name == best_single)
        name = f"shrunk:{chosen.name}"
        shrunk = Composition(name, (chosen,), ConstantGates((1.0 / n,)))
        systems = [System(name, "control", shrunk)]
        if best is not None and best.kind != "chain":
            weight = None if self.base is None else self.base.weight
            partners = [
                expert if own is chosen else random_partner(expert, options.seed, weight)
                for own, expert in zip(self.trained, self.prepared.adapters, strict=True)
            ]
            built = self.build(best.name, partners, name="random-partner")
            stored = f"random-partner:{best.name}"
            control = System("random-partner", "control", built.composition, stored=stored)
            systems.append(control)
        return systems


Weigh = Callable[[str], Tensor]  # module path -> W0 [out, in]


def random_partner(adapter: Adapter, seed: int = 0, weight: Weigh | None = None) -> Adapter:
    """A random adapter with the shapes and the per-module Frobenius norms of another.

    Merging with random adapters works nearly as well as with unrelated real ones (arXiv
    2602.12323). If a composition does not beat this control, the partner adds nothing.

    The factors are Gaussian, drawn from the seed, the adapter's name and the module's path. They
    are drawn when they are used, so the control needs no memory. The result is a plain LoRA. For
    a DoRA it has the norm of the whole change of the weight, for which `weight` gives the base's
    weight; if that cannot be read, the norm of the low-rank part. Modules that the other adapter
    replaces whole, and biases, stay as in the base.
    """

    def norm(path: str, update: LowRank) -> float:
        if weight is None or path not in adapter.magnitudes:
            return float(update.norm())
        try:
            W0 = weight(path)
        except BaseError:
            return float(update.norm())
        return change_norm(update, adapter.magnitudes[path], W0)

    def draw(path: str) -> LowRank:
        update = adapter.modules[path].to(torch.float32)
        digest = hashlib.sha256(f"{seed}:{adapter.name}:{path}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        A = torch.randn(update.A.shape, generator=generator)
        B = torch.randn(update.B.shape, generator=generator)
        drawn = LowRank(A, B, 1.0)
        return drawn.scaled(norm(path, update) / float(drawn.norm()))

    return Adapter(
        name=f"random:{adapter.name}",
        source=Source(reference=f"random:{adapter.name}"),
        base_model=adapter.base_model,
        modules=Modules(adapter.layout, draw),
        config=adapter.config,
    )
