"""The systems of an evaluation: which are asked on which items, and how each is built.

`plan_of` decides once, from the options, which merges and routers are evaluated: those that are
asked for, and for several tasks one that proved itself. `loraprobe lab methods` compares all on
worlds of known truth; docs/merging.md and examples/reproduction/portfolio.md tell how.

The base and the single adapters, which a composition has to beat, are evaluated as they were
trained. Merges and routers use the adapters that `transforms.transform` returns.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from loraprobe.adapters import Adapter, Modules, Source
from loraprobe.base import Base
from loraprobe.composition import Composition, Router, change_norm
from loraprobe.composition.router import unroutable
from loraprobe.errors import BaseError, LoraprobeError, UsageError
from loraprobe.evaluation import System
from loraprobe.extension import SystemSource, system_sources
from loraprobe.formatting import listing, nearest
from loraprobe.lora.lowrank import LowRank
from loraprobe.merging import (
    METHODS,
    LinearMethod,
    MergeConfig,
    Merged,
    MergeMethod,
    check_kept,
    merge,
)
from loraprobe.options import Options
from loraprobe.pipeline.transforms import PreparedAdapters, scaled_by_layer
from loraprobe.records import (
    BY_PROMPT,
    BY_TEXT,
    COMPOSITIONS,
    FIXED,
    MULTI_ADAPTER_KINDS,
    SHRUNK,
    LearnedWeights,
    display_name,
)
from loraprobe.registry import name_of
from loraprobe.results import digest
from loraprobe.routing import ROUTERS
from loraprobe.routing.constant import ConstantGates, single
from loraprobe.tasks import Task
from loraprobe.tasks.splits import TaskSplit, left_by, split_for_router, split_for_weights

# The only systems that join the default ones, each with a note that says why.
WHY_ADDED = {
    BY_PROMPT: (
        f"The router {BY_PROMPT} is evaluated because it proved itself: "
        "retention of the worse skill 0.84, against 0.34 for the best of the other default "
        "systems, on 22 small worlds of known truth "
        "(examples/reproduction/portfolio.md)."
    ),
    BY_TEXT: (
        f"The router {BY_TEXT} is evaluated too: unlike {BY_PROMPT} it can stand in front of any "
        "server that has the adapters."
    ),
}


def kind_of(spec: str) -> str | None:
    """The kind (`records.kinds`) of the system of a spec; None where it names none of these."""
    if spec in METHODS:
        return "merge"
    return "router" if spec in ROUTERS else FIXED.get(spec)


def method_of(spec: str) -> MergeMethod | Router | None:
    """The merge method or the router of a spec; None where it names neither."""
    if spec in METHODS:
        return METHODS.make(spec)
    return ROUTERS.make(spec) if spec in ROUTERS else None


Sources = tuple[tuple[SystemSource, TaskSplit], ...]


@dataclass(frozen=True)
class Plan:
    """Which compositions are evaluated, and on which items.

    specs: the compositions: merge methods, routers and "chain".
    tasks: the tasks, each with the items on which systems are scored.
    parts: the items from which routers or weights learn, and the items that are left; None where
        nothing learns from items.
    learning: spec -> router, for the routers that learn from prompts.
    added: the specs that no option names.
    left_out: a note on each default router that cannot be used.
    sources: the `SystemSource`s of extensions, each with the items that are set apart for it.
    """

    specs: tuple[str, ...] = ()
    tasks: tuple[Task, ...] = ()
    parts: TaskSplit | None = None
    learning: Mapping[str, Router] = field(default_factory=dict)
    added: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    sources: Sources = ()


@dataclass(frozen=True)
class Fitted:
    """What was fitted before systems are asked.

    weights: the weights that `--weights learn` found.
    routers: spec -> fitted router, for the routers that learn from prompts.
    prompts: adapter -> the prompts to which routers were fitted.
    record: how and where the prompts were read, as a card says it; None where no file holds them
        all.
    notes: sentences about the fit.
    """

    weights: LearnedWeights | None = None
    routers: Mapping[str, Router] = field(default_factory=dict)
    prompts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    record: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def factors(self, options: Options) -> tuple[float, ...] | None:
        """The weights that were fitted or given; None for each method's default."""
        return self.weights.factors if self.weights else options.given_weights

    def specs(self, plan: Plan) -> list[str]:
        """The specs of a plan without the routers that could not be fitted."""
        return [spec for spec in plan.specs if spec not in plan.learning or spec in self.routers]


def plan_of(options: Options, adapters: Sequence[Adapter], tasks: Sequence[Task] = ()) -> Plan:
    """What the options ask for of these adapters and tasks.

    Those of WHY_ADDED join for several tasks where `--router` stands at its default, unless
    `--system` names what is evaluated. A default router that cannot be used is left out; one that
    the user named raises an error later. One adapter has no compositions. Raises TaskError where
    a task is too small for `--weights learn` or for what an extension adds, UsageError for an
    adapter with the name of a system that one adds.
    """
    if len(adapters) < 2:
        return Plan(tasks=tuple(tasks))
    given = options.routers != Options().routers
    added = tuple(WHY_ADDED) if len(tasks) > 1 and not (given or options.systems) else ()
    spared = {adapter.name for adapter in adapters} <= {name for name, _ in options.router_prompts}
    parts = None if spared else split_for_router(tasks, options, len(adapters))
    hops = any(task.has_hops for task in tasks)
    specs, learning, left_out = list[str](), dict[str, Router](), dict[str, list[str]]()
    for spec in _specs(options, added, hops):
        method = method_of(spec)
        router = method if isinstance(method, Router) else None
        named = spec in options.systems or (given and spec in options.routers)
        why = "" if router is None else _why_unfit(router, adapters, parts)
        if why and not named:
            left_out.setdefault(why, []).append(display_name(spec))
            continue
        specs.append(spec)
        if router is not None and router.needs_prompts:
            learning[spec] = router
    told = [
        f"{listing(names)} {'is' if len(names) == 1 else 'are'} left out: {why}"
        for why, names in left_out.items()
    ]
    apart = parts if learning and isinstance(parts, TaskSplit) else None
    if tasks and options.learns:
        apart = split_for_weights(tasks, options)
    sources, left = with_sources(tasks, apart, options) if tasks else ((), tuple(tasks))
    for source, own in sources:
        check_free([adapter.name for adapter in adapters], source.expected(own))
    apart = None if apart is None else replace(apart, left=left)
    return Plan(tuple(specs), left, apart, learning, added, tuple(told), sources)


def with_sources(
    tasks: Sequence[Task], apart: TaskSplit | None, options: Options
) -> tuple[Sources, tuple[Task, ...]]:
    """What makes the systems of extensions, each with what it sets apart, and the items that are
    left for all systems. apart: what is set apart beside it. Raises TaskError."""
    sources = [(one, one.set_apart(tasks, options)) for one in system_sources(options)]
    left = left_by(tasks, [own for _, own in sources] + ([] if apart is None else [apart]))
    return tuple((one, replace(own, left=left)) for one, own in sources), left


def _specs(options: Options, added: Sequence[str], hops: bool) -> list[str]:
    """The merges, the routers and, where a task has hops, the chain."""
    methods = list(options.methods)
    if options.weights and methods and not any(METHODS.make(m).takes_weights for m in methods):
        methods.append("task_arithmetic")  # otherwise the weights would have no effect
    specs = [*methods, *options.routers, *added, *(["chain"] if hops else [])]
    if options.systems:
        extra = [one for one in options.systems if kind_of(one) in MULTI_ADAPTER_KINDS]
        specs = [*(spec for spec in specs if spec in options.systems), *extra]
    return list(dict.fromkeys(specs))


def _why_unfit(router: Router, adapters: Sequence[Adapter], parts: TaskSplit | str | None) -> str:
    """Why a router cannot be used; "" if it can. parts: a text says why no items are set apart."""
    for holder in adapters if not router.weighs_whole else ():
        if what := unroutable(holder):
            return f"{holder.name} {what}, which gates that look at the token cannot weigh."
    if not router.needs_prompts or not isinstance(parts, str):
        return ""
    return (
        f"it learns from questions that serve nothing else, and {parts}. Give each adapter "
        "prompts of its own by --router-prompts NAME=FILE."
    )


def baseline_systems(adapters: Sequence[Adapter]) -> list[System]:
    """The base and each adapter alone, which are always evaluated."""
    return [System("base", "base"), *(System.alone(single(a)) for a in adapters)]


def check_systems(adapters: Sequence[Adapter], options: Options) -> None:
    """Checks the systems before anything is loaded.

    Raises UsageError for a `--system` that does not exist, for a method that does not accept these
    weights or this number of adapters, and for an adapter with the name of a system, since results
    are stored by name.
    """
    named = [spec for spec in options.systems if kind_of(spec) in COMPOSITIONS]
    taken = {*options.methods, *options.routers, *named, "task_arithmetic"}
    names = [adapter.name for adapter in adapters]
    check_free(names, {*taken, *(name for name in names if name.startswith(SHRUNK))})
    others = {*FIXED, *(a.name for a in adapters)}
    for spec in options.systems:
        if spec not in others and spec not in named:
            known = sorted({*others, *METHODS.names(), *ROUTERS.names()})
            raise UsageError(f"Unknown system {spec!r}:", nearest(spec, known))
    n = len(adapters)
    methods = map(method_of, (*options.methods, *named))
    for method in (one for one in methods if isinstance(one, MergeMethod)):
        method.check(options.given_weights or method.default_weights(n))
        if options.learns and method.takes_weights:
            try:
                method.check([(-1.0) ** i for i in range(n)])
            except UsageError:
                raise UsageError(
                    f"Learned weights may be negative, which {name_of(method)} does not take; "
                    "learn them for task_arithmetic, or give weights."
                ) from None
        check_kept(adapters, method, options.allow)


def check_free(adapters: Sequence[str], taken: Collection[str]) -> None:
    """Raises UsageError for an adapter with the name of a system. taken: these names."""
    for name in adapters:
        if name in taken:
            raise UsageError(
                f"The adapter name {name!r} is that of a system of its own:",
                f"give the adapter another one, as in my-{name.partition(':')[0]}=REF.",
            )


def constant_gates(
    method: MergeMethod, options: Options, weights: Sequence[float] | None, n: int
) -> tuple[float, ...] | None:
    """The gates of n experts that compute what a linear merge does.

    None for other methods, and where a space or a rank is asked for: those need new weights.
    """
    if not isinstance(method, LinearMethod) or options.rank != "auto" or options.space is not None:
        return None
    return tuple(map(float, method.coefficients(weights or method.default_weights(n))))


@dataclass(frozen=True)
class SystemBuilder:
    """Builds compositions of adapters from specs.

    trained: the adapters as they were trained; prepared: those that are merged and routed.
    """

    trained: Sequence[Adapter]
    prepared: PreparedAdapters
    options: Options
    base: Base | None = None
    fitted: Fitted = field(default_factory=Fitted)
    made_controls: dict[tuple[str, str], list[System]] = field(default_factory=dict, init=False)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """The weights that were fitted or given; None for each method's default."""
        return self.fitted.factors(self.options)

    def build(
        self, spec: str, adapters: Sequence[Adapter] | None = None, name: str | None = None
    ) -> System:
        """A merge method, a router or "chain" over adapters (the transformed ones unless given)."""
        experts = tuple(self.prepared.adapters if adapters is None else adapters)
        method, name = self.fitted.routers.get(spec) or method_of(spec), name or spec
        if isinstance(method, MergeMethod):
            system = self._merge(method, experts, name)
        elif isinstance(method, Router):
            if method.constant and self.weights is not None:
                experts, method = self._weighed(experts), ConstantGates(self.weights)
            system = System(name, "router", Composition(name, experts, method))
            if method.reads_text and all(map(operator.is_, experts, self.trained)):
                system = replace(system, contents=tuple(one.content for one in experts))
        elif kind_of(spec) == "chain":
            return System(name, "chain", chain=tuple(map(single, self.trained)))
        else:
            raise UsageError(f"{spec!r} is neither a merge method nor a router.")
        return replace(system, spec=spec, method=method, content=self._content(spec))

    def build_each(self, specs: Mapping[str, str]) -> tuple[list[System], list[str]]:
        """The systems of specs that can be built, and a note on each other one. specs: by name."""
        systems, notes = list[System](), list[str]()
        for name, spec in specs.items():
            try:
                systems.append(self.build(spec, name=name))
            except LoraprobeError as error:
                notes.append(f"{display_name(name)} was not tried: {error}")
        return systems, notes

    def merge(
        self,
        method: MergeMethod,
        experts: Sequence[Adapter] | None = None,
        name: str | None = None,
    ) -> Merged:
        """A merge as one adapter (of the transformed ones unless given)."""
        experts = self.prepared.adapters if experts is None else experts
        experts = self._weighed(experts) if method.takes_weights else experts
        return merge(
            experts,
            MergeConfig.of(method, self.options, self.weights, self.prepared.dtype),
            base=self.base,
            name=name,
        )

    def with_files(self, compositions: Sequence[System]) -> list[System]:
        """The compositions, the merges among them with the adapter that a server loads."""
        return [
            replace(system, artifact=self.merge(system.method))
            if system.kind == "merge" and system.artifact is None
            else system
            for system in compositions
        ]

    def _weighed(self, experts: Sequence[Adapter]) -> tuple[Adapter, ...]:
        """The experts as a method gets them that takes weights: times those of their layers, where
        these were learned."""
        learned = self.fitted.weights
        return tuple(experts) if learned is None else scaled_by_layer(experts, learned.layers)

    def _merge(self, method: MergeMethod, experts: tuple[Adapter, ...], name: str) -> System:
        """Linear merges are constant gates over the experts; others need new weights."""
        gates = constant_gates(method, self.options, self.weights, len(experts))
        if gates is not None:
            experts = self._weighed(experts) if method.takes_weights else experts
            composition = Composition(name, experts, ConstantGates(gates))
            return System(name, "merge", composition, compression_error=0.0)
        merged = self.merge(method, experts, name)
        alone, error = single(merged.adapter), merged.compression_error
        return System(name, "merge", alone, compression_error=error, artifact=merged)

    def _content(self, spec: str, control: str = "") -> str:
        """The content of a composition, or of a control of it."""
        learned: Any = self.fitted.weights
        if spec in self.fitted.routers:
            learned = self.fitted.prompts
        elif kind_of(spec) == "router" and not ROUTERS.make(spec).constant:
            learned = None
        return self.prepared.content(spec, self.trained, self.options, learned, control)

    def controls(self, best_single: str, spec: str) -> list[System]:
        """`shrunk:NAME` and `random-partner`, which a composition has to beat.

        spec: of that composition. The random partners are composed with its weights. To learn
        others for the control would cost as much again. Controls are built once for all rounds.
        """
        key = best_single, spec
        if key in self.made_controls:
            return self.made_controls[key]
        chosen = next(a for a in self.trained if a.name == best_single)
        name = f"{SHRUNK}{chosen.name}"
        shrunk = Composition(name, (chosen,), ConstantGates((1.0 / len(self.trained),)))
        weight = None if self.base is None else self.base.weight
        partners = [
            expert if trained is chosen else random_partner(expert, self.options.seed, weight)
            for trained, expert in zip(self.trained, self.prepared.adapters, strict=True)
        ]
        random = self.build(spec, partners, name="random-partner").composition
        self.made_controls[key] = [
            System(name, "control", shrunk, content=digest([chosen.content, len(self.trained)])),
            System(
                "random-partner",
                "control",
                random,
                content=self._content(spec, f"random partners of {best_single}"),
                of=spec,
            ),
        ]
        return self.made_controls[key]


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
