"""Who takes part: every merge method in every space, every router, from the shelves themselves."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from loraprobe.adapter import Adapter
from loraprobe.evaluation import System
from loraprobe.merging import METHODS, LinearMethod, MergeMethod
from loraprobe.routing import ROUTERS
from loraprobe.spaces import SPACES

if TYPE_CHECKING:
    from loraprobe.pipeline.systems import SystemBuilder

Family = Literal["linear", "merge", "router", "chain"]
N = 2  # adapters in every case


@dataclass(frozen=True)
class Entrant:
    """One way of composing two adapters.

    spec: method or router as on the command line, or "chain". space: None where the method runs in
    its default space, in which it gives what it gives in the spaces listed in `same`. strength:
    weight of each adapter; None for the method's default, 1/n. balanced: norms made equal first.
    """

    label: str
    family: Family
    spec: str
    space: str | None = None
    strength: float | None = None
    same: tuple[str, ...] = ()
    balanced: bool = False

    def builder(self, adapters: Sequence[Adapter], seed: int = 0) -> SystemBuilder:
        """What builds the system, as in `merge-and-eval`."""
        from loraprobe.options import Options
        from loraprobe.pipeline.systems import SystemBuilder

        settings = Options(
            routers=(self.spec,) if self.family == "router" else (),
            space=self.space,
            weights=None if self.strength is None else (self.strength,) * len(adapters),
            balance="norm" if self.balanced else "none",
            rank=whole_rank(adapters) if self.family == "merge" else "auto",
            seed=seed,
        )
        return SystemBuilder.of(adapters, settings)

    def system(self, builder: SystemBuilder) -> System:
        """The system over its adapters. Raises LoraprobeError where it cannot be built."""
        return builder.build(self.spec, name=self.label).system


def whole_rank(adapters: Sequence[Adapter]) -> int:
    """A rank that cuts nothing: what is asked here is the method, not its compression."""
    infos = [info for adapter in adapters for info in adapter.layout.values()]
    return max(min(info.in_features, info.out_features) for info in infos)


def entrants(
    methods: Sequence[str] = (),
    routers: Sequence[str] = (),
    strengths: Sequence[float | None] = (None, 1.0),
) -> list[Entrant]:
    """Everyone who takes part; only these methods and routers, as they are, where some are named.

    A method stands once for all spaces in which it is lossless, and once in every other one; one
    that takes weights stands once at each strength. Linear methods whose coefficients agree are one
    composition, and one entrant; it stands a second time with norms made equal first.
    """
    named = bool(methods or routers)
    chosen = list(methods) if named else METHODS.names()
    found = [e for e in _linear(chosen, strengths) if not (named and e.balanced)]
    found += [e for spec in chosen for e in _merges(spec, strengths)]
    if named:
        found += [Entrant(spec, "router", spec) for spec in routers]
    else:
        found += list(_routers())
    found.append(Entrant("chain", "chain", "chain"))
    return list({entrant.label: entrant for entrant in found}.values())


def _linear(specs: Sequence[str], strengths: Sequence[float | None]) -> Iterator[Entrant]:
    groups: dict[tuple[float, ...], list[Entrant]] = {}
    for spec in specs:
        method = METHODS.make(spec)
        if isinstance(method, LinearMethod):
            for strength in _strengths(method, strengths):
                weights = method.default_weights(N) if strength is None else (strength,) * N
                gates = tuple(method.coefficients(weights, N))
                groups.setdefault(gates, []).append(Entrant(spec, "linear", spec, None, strength))
    for same in groups.values():
        plain = sorted(same, key=lambda e: (e.strength is not None, e.spec == "task_arithmetic"))
        label = " = ".join(_label(entrant) for entrant in plain)
        yield dataclasses.replace(plain[0], label=label)
        yield dataclasses.replace(plain[0], label=f"{_label(plain[0])} balanced", balanced=True)


def _merges(spec: str, strengths: Sequence[float | None]) -> Iterator[Entrant]:
    method = METHODS.make(spec)
    if isinstance(method, LinearMethod):
        return
    for space, same in _spaces(method):
        for strength in _strengths(method, strengths):
            entrant = Entrant(spec, "merge", spec, space, strength, same)
            yield dataclasses.replace(entrant, label=_label(entrant))


def _spaces(method: MergeMethod) -> list[tuple[str | None, tuple[str, ...]]]:
    """(space, spaces in which the result is the same); a method on factors has no space at all."""
    from loraprobe.merging import FactorMethod

    if isinstance(method, FactorMethod):
        return [(None, ())]
    lossless = tuple(space for space in SPACES if space in method.lossless)
    others: list[tuple[str | None, tuple[str, ...]]] = [
        (space, ()) for space in SPACES if space not in method.lossless
    ]
    alone = lossless == ("full",)
    first: tuple[str | None, tuple[str, ...]] = ("full", ()) if alone else (None, lossless)
    return [first, *others]


def _strengths(method: MergeMethod, strengths: Sequence[float | None]) -> Sequence[float | None]:
    """Those asked for, or the only one where the method leaves weights alone."""
    if not method.takes_weights:
        return (None,)
    ones = method.default_weights(N)
    return [s for s in dict.fromkeys(strengths) if s is None or (s,) * N != ones]


def _label(entrant: Entrant) -> str:
    space = f" in {entrant.space}" if entrant.space else ""
    strength = f" x{entrant.strength:g}" if entrant.strength is not None else ""
    return f"{entrant.spec}{space}{strength}"


def _routers() -> Iterator[Entrant]:
    """Every router that looks at tokens, as it stands and with every other choice of its options
    that have named values, each alone and any two together."""
    for cls in ROUTERS:
        if not cls.constant:
            name = cls.__module__.rpartition(".")[2]
            for spec in (name, *(f"{name}:{','.join(choice)}" for choice in _choices(cls))):
                yield Entrant(spec, "router", spec)


def _choices(cls: type) -> Iterator[tuple[str, ...]]:
    hints = typing.get_type_hints(cls)
    named = [
        [f"{field.name}={v}" for v in typing.get_args(hints[field.name]) if v != field.default]
        for field in dataclasses.fields(cls)
        if field.init and typing.get_origin(hints[field.name]) is Literal
    ]
    yield from ((choice,) for options in named for choice in options)
    for first, second in itertools.combinations(named, 2):
        yield from itertools.product(first, second)
