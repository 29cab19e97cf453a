"""The systems of an audit: what is evaluated side by side on one copy of the base.

Base and single adapters are what a composition has to beat, so they stay as they are; merges and
routers take the adapters that `transforms.prepare` makes of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from loraprobe.adapter import Adapter
from loraprobe.audit.controls import random_partner
from loraprobe.audit.settings import Settings
from loraprobe.audit.transforms import Prepared, prepare
from loraprobe.base import Base
from loraprobe.composition import Composition, Router
from loraprobe.errors import UsageError
from loraprobe.evaluation import System
from loraprobe.merging import METHODS, LinearMethod, Merged, check_kept, merge
from loraprobe.routing import ROUTERS
from loraprobe.routing.constant import ConstantGates


def single(adapter: Adapter) -> Composition:
    """One adapter alone, as a composition."""
    return Composition(adapter.name, (adapter,), ConstantGates.ones(1))


def name_in(spec: str) -> str:
    """The name of the file that a spec leads to: "task-arithmetic" and "ties:density=0.3" alike."""
    return spec.partition(":")[0].strip().replace("-", "_")


@dataclass
class Workshop:
    """Builds systems from their specs and remembers the merges that needed new weights.

    `general` is what `--subtract` takes out; `searched` the weights that a search has found;
    `fitted` the routers that have learned from prompts, by their spec.
    """

    adapters: Sequence[Adapter]
    settings: Settings
    general: Sequence[Adapter] = ()
    base: Base | None = None
    searched: tuple[float, ...] | None = None
    merged: dict[str, Merged] = field(default_factory=dict)
    fitted: dict[str, Router] = field(default_factory=dict)

    @cached_property
    def prepared(self) -> Prepared:
        """The adapters as they are merged and routed."""
        return prepare(self.adapters, self.settings, self.general, self.base)

    @property
    def weights(self) -> tuple[float, ...] | None:
        """Those given or found; None where each method takes its own."""
        return self.searched or self.settings.given_weights

    def baselines(self) -> list[System]:
        """The base and each adapter alone: always evaluated, since the verdict stands on them."""
        singles = [System(a.name, "adapter", single(a)) for a in self.adapters]
        return [System("base", "base"), *singles]

    def check(self) -> None:
        """Raises UsageError for a `--system` that nothing answers to, and for a method that takes
        no such weights or not so many adapters, before anything is loaded.

        Neither may an adapter bear the name of a system that is run, since results are kept by
        it; names that are always taken, such as "base", are refused where adapters are named.
        """
        shelves = {*METHODS.names(), *ROUTERS.names()}
        asked = [s for s in self.settings.systems if name_in(s) in shelves]
        run = (*self.settings.methods, *self.settings.routers, *asked, "task_arithmetic")
        self._refuse_names(run)
        controls = ("shrunk", "random-partner")
        own = {"base", "chain", *controls, *(a.name for a in self.adapters)}
        for spec in self.settings.systems:
            head = name_in(spec)
            if spec in own or head in METHODS.names() or head in ROUTERS.names():
                continue
            known = ", ".join(sorted({*own, *METHODS.names(), *ROUTERS.names()}))
            raise UsageError(f"Unknown system {spec!r}: there are {known}.")

        for spec in (*self.settings.methods, *asked):
            if name_in(spec) in METHODS.names():
                self._check_weights(spec)
                check_kept(self.adapters, METHODS.make(spec), self.settings.allow)

    def _check_weights(self, spec: str) -> None:
        """Whether a method takes these weights, as far as they are known yet."""
        method, n = METHODS.make(spec), len(self.adapters)
        method.check(self.settings.given_weights or method.default_weights(n))
        if self.settings.weights == "search" and method.takes_weights:
            try:
                method.check([(-1.0) ** i for i in range(n)])
            except UsageError:
                raise UsageError(
                    f"A search may find negative weights, which {name_in(spec)} does not take; "
                    "search for task_arithmetic, or give weights."
                ) from None

    def _refuse_names(self, taken: Sequence[str]) -> None:
        for adapter in self.adapters:
            name = adapter.name
            if name in taken or name.startswith("shrunk:"):
                raise UsageError(
                    f"The adapter name {name!r} is that of a system of its own: give the adapter "
                    f"another one, as in my-{name.partition(':')[0]}=REF."
                )

    def compositions(self, has_hops: bool) -> list[System]:
        """Merges, routers and, where the task has hops, the chain; filtered by `--system`."""
        experts = self.prepared.adapters
        return [self.build(spec, experts) for spec in self._specs(has_hops)]

    def _specs(self, has_hops: bool) -> list[str]:
        settings = self.settings
        methods = list(settings.methods)
        if settings.weights and not any(METHODS.make(m).takes_weights for m in methods):
            methods.append("task_arithmetic")  # or the weights given would have no effect
        built = [*methods, *settings.routers] + (["chain"] if has_hops else [])
        wanted = set(settings.systems)
        if wanted:
            reserved = {"base", *(a.name for a in self.adapters), "shrunk", "random-partner"}
            extra = [s for s in settings.systems if s not in built and s not in reserved]
            built = [s for s in built if s in wanted] + extra
        return [spec for spec in dict.fromkeys(built) if spec not in self._left_out]

    @cached_property
    def _left_out(self) -> tuple[str, ...]:
        """Routers that nobody asked for by name and that cannot weigh what the adapters hold."""
        default = Settings().routers
        if self.settings.routers != default or not any(a.whole for a in self.adapters):
            return ()
        asked = self.settings.systems
        return tuple(s for s in default if s not in asked and not ROUTERS.make(s).weighs_whole)

    def notes(self) -> tuple[str, ...]:
        """Which systems an audit leaves out, and why."""
        holder = next((a for a in self.adapters if a.whole), None)
        return tuple(
            f"{spec} is left out: {holder.name} replaces {next(iter(holder.whole))} whole, which "
            "gates that look at the token cannot weigh."
            for spec in self._left_out
            if holder is not None
        )

    def forecastable(self) -> dict[str, tuple[float, ...] | Router]:
        """The compositions asked for whose gain can be forecast: name -> constant gates or router.

        Those are linear merges with gates in (0, 1] and Arrow as it stands, like those on which
        forecasts were measured, over adapters as they were trained.
        """
        if self.settings.balance != "none" or self.settings.subtract:
            return {}
        found = {spec: self._gates(spec) for spec in self._specs(has_hops=False)}
        return {spec: gates for spec, gates in found.items() if gates is not None}

    def _gates(self, spec: str) -> tuple[float, ...] | Router | None:
        if name_in(spec) in ROUTERS.names():
            router = ROUTERS.make(spec)
            return router if router == ROUTERS.make("arrow") else None
        if name_in(spec) not in METHODS.names():
            return None
        method, settings, n = METHODS.make(spec), self.settings, len(self.adapters)
        if not isinstance(method, LinearMethod) or settings.rank != "auto" or settings.space:
            return None
        if settings.weights == "search" and method.takes_weights:
            return None
        weights = settings.given_weights or method.default_weights(n)
        gates = tuple(map(float, method.coefficients(weights, n)))
        return gates if all(0 < gate <= 1 for gate in gates) else None

    def routers(self) -> list[str]:
        """The specs of all routers asked for, those of `--system` too."""
        asked = (*self.settings.routers, *self._specs(has_hops=False))
        return [spec for spec in dict.fromkeys(asked) if name_in(spec) in ROUTERS.names()]

    def router(self, spec: str) -> Router:
        """The router of a spec, with what it has learned if it has."""
        return self.fitted.get(spec) or ROUTERS.make(spec)

    def wants(self, control: str) -> bool:
        """Whether a control is to be run."""
        return not self.settings.systems or control in self.settings.systems

    def build(self, spec: str, adapters: Sequence[Adapter], name: str | None = None) -> System:
        """A merge method, a router or "chain" (of the adapters as they are), over these experts."""
        head = name_in(spec)
        if spec == "chain":
            return System("chain", "chain", chain=tuple(single(a) for a in self.adapters))
        if head in METHODS.names():
            return self._merge(spec, adapters, name or spec)
        if head in ROUTERS.names():
            composition = Composition(name or spec, tuple(adapters), self.router(spec))
            return System(name or spec, "router", composition)
        raise UsageError(f"{spec!r} is neither a merge method nor a router.")

    def _merge(self, spec: str, adapters: Sequence[Adapter], name: str) -> System:
        """Linear merges are constant gates over the experts; the others need new weights."""
        method = METHODS.make(spec)
        settings = self.settings
        weights = self.weights or method.default_weights(len(adapters))
        if isinstance(method, LinearMethod) and settings.rank == "auto" and settings.space is None:
            gates = method.coefficients(weights, len(adapters))
            composition = Composition(
                name, tuple(adapters), ConstantGates(tuple(map(float, gates)))
            )
            return System(name, "merge", composition, compression_error=0.0)
        merged = merge(
            adapters, method, weights=self.weights, space=settings.space, rank=settings.rank,
            seed=settings.seed, allow=settings.allow, name=name, dtype=self.prepared.dtype,
            base_weight=self.base.weight if self.base is not None else None,
            base_parameter=self.base.parameter if self.base is not None else None,
        )  # fmt: skip
        self.merged[name] = merged
        return System(
            name, "merge", single(merged.adapter), compression_error=merged.compression_error
        )

    def controls(self, best_single: str, best: System | None) -> list[System]:
        """`shrunk:NAME` and `random-partner`, which a composition has to beat.

        The random partners take the weights of the composition, also where those were searched
        for: a search of their own would cost as much again as the first.
        """
        n = len(self.adapters)
        if n < 2:
            return []
        chosen = next(a for a in self.adapters if a.name == best_single)
        systems = []
        if self.wants("shrunk"):
            name = f"shrunk:{chosen.name}"
            shrunk = Composition(name, (chosen,), ConstantGates((1.0 / n,)))
            systems.append(System(name, "control", shrunk))
        if self.wants("random-partner") and best is not None and best.kind != "chain":
            weight = None if self.base is None else self.base.weight
            partners = [
                expert if own is chosen else random_partner(expert, self.settings.seed, weight)
                for own, expert in zip(self.adapters, self.prepared.adapters, strict=True)
            ]
            built = self.build(best.name, partners, name="random-partner")
            systems.append(System("random-partner", "control", built.composition))
        return systems
