"""The systems that are compared: every merge method in every space, every router, the chain."""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from loraprobe.adapters import Adapter
from loraprobe.evaluation import System
from loraprobe.lora.spaces import SPACES
from loraprobe.merging import METHODS, FactorMethod, LinearMethod, MergeMethod
from loraprobe.registry import name_of
from loraprobe.routing import ROUTERS

if TYPE_CHECKING:
    from loraprobe.pipeline.systems import SystemBuilder

Family = Literal["linear", "merge", "router", "chain"]
Strengths = Sequence[float | None]
N = 2  # adapters in every case


@dataclass(frozen=True)
class ComparedSystem:
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

    def builder(self, adapters: Sequence[Adapter]) -> SystemBuilder:
        """What builds the system, as in `merge-and-eval`."""
        from loraprobe.options import Options
        from loraprobe.pipeline.systems import SystemBuilder
        from loraprobe.pipeline.transforms import prepare

        settings = Options(
            routers=(self.spec,) if self.family == "router" else (),
            space=self.space,
            weights=None if self.strength is None else (self.strength,) * len(adapters),
            balance="norm" if self.balanced else "none",
            rank=whole_rank(adapters) if self.family == "merge" else "auto",
        )
        return SystemBuilder(adapters, prepare(adapters, settings), settings)

    def build(self, builder: SystemBuilder) -> System:
        """The system over its adapters. Raises LoraprobeError where it cannot be built."""
        return builder.build(self.spec, name=self.label)


def whole_rank(adapters: Sequence[Adapter]) -> int:
    """A rank that cuts nothing, because the method is compared and not its compression."""
    infos = [info for adapter in adapters for info in adapter.layout.values()]
    return max(min(info.in_features, info.out_features) for info in infos)


def all_systems(
    methods: Sequence[str] = (), routers: Sequence[str] = (), strengths: Strengths = (None, 1.0)
) -> list[ComparedSystem]:
    """Every system; only these methods and routers, as they are, where some are named.

    A method is one system for all spaces in which it is lossless, and one for every other space; a
    method that takes weights is one system at each strength. Linear methods whose coefficients
    agree are one system, and a second one with norms made equal first. Raises UsageError for an
    unknown method or router.
    """
    named = bool(methods or routers)
    chosen = list(methods) if named else METHODS.names()
    found = [one for one in _linear(chosen, strengths) if not (named and one.balanced)]
    found += [one for spec in chosen for one in _merges(spec, strengths)]
    found += [ComparedSystem(spec, "router", spec) for spec in (routers if named else _routers())]
    found.append(ComparedSystem("chain", "chain", "chain"))
    return list({one.label: one for one in found}.values())


def _linear(specs: Sequence[str], strengths: Strengths) -> Iterator[ComparedSystem]:
    groups: dict[tuple[float, ...], list[ComparedSystem]] = {}
    for spec in specs:
        method = METHODS.make(spec)
        if isinstance(method, LinearMethod):
            for strength in _strengths(method, strengths):
                weights = method.default_weights(N) if strength is None else (strength,) * N
                gates = tuple(method.coefficients(weights))
                one = ComparedSystem(_label(spec, strength), "linear", spec, strength=strength)
                groups.setdefault(gates, []).append(one)
    for same in groups.values():
        plain = sorted(same, key=lambda e: (e.strength is not None, e.spec == "task_arithmetic"))
        label = " = ".join(one.label for one in plain)
        yield dataclasses.replace(plain[0], label=label)
        yield dataclasses.replace(plain[0], label=f"{plain[0].label} balanced", balanced=True)


def _merges(spec: str, strengths: Strengths) -> Iterator[ComparedSystem]:
    method = METHODS.make(spec)
    if isinstance(method, LinearMethod):
        return
    lossless = tuple(space for space in SPACES if space in method.lossless)
    spaces: list[tuple[str | None, tuple[str, ...]]] = [
        ("full", ()) if lossless == ("full",) else (None, lossless),
        *((space, ()) for space in SPACES if space not in lossless),
    ]
    if isinstance(method, FactorMethod):  # on factors there is no space at all
        spaces = [(None, ())]
    for (space, same), strength in itertools.product(spaces, _strengths(method, strengths)):
        label = _label(spec, strength, space)
        yield ComparedSystem(label, "merge", spec, space, strength, same)


def _strengths(method: MergeMethod, strengths: Strengths) -> Strengths:
    """The given strengths, or None alone for a method without weights."""
    if not method.takes_weights:
        return (None,)
    ones = method.default_weights(N)
    return [s for s in dict.fromkeys(strengths) if s is None or (s,) * N != ones]


def _label(spec: str, strength: float | None, space: str | None = None) -> str:
    weights = f" x{strength:g}" if strength is not None else ""
    return spec + (f" in {space}" if space else "") + weights


def _routers() -> Iterator[str]:
    """Every token router with default options, and with other values of its Literal options.

    Each other value is used alone and with one other value of a second option.
    """
    for cls in ROUTERS:
        if not cls.constant:
            name = name_of(cls)
            yield from (name, *(f"{name}:{','.join(choice)}" for choice in _choices(cls)))


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
