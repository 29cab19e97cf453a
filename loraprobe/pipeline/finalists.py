"""The finalists of a screen: the chosen sets of adapters, composed by every method asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from loraprobe import compatibility, evaluation
from loraprobe.adapters import Adapter
from loraprobe.base import Base
from loraprobe.errors import LoraprobeError
from loraprobe.evaluation import System
from loraprobe.options import Options
from loraprobe.pipeline.evaluating import best_system
from loraprobe.pipeline.portfolio import unfit_routers
from loraprobe.pipeline.session import Session
from loraprobe.pipeline.shortlisting import RankedSet
from loraprobe.pipeline.systems import SystemBuilder, composition_specs
from loraprobe.pipeline.transforms import prepare
from loraprobe.records import ItemResult


@dataclass(frozen=True, eq=False)
class Finalist:
    """A chosen set of adapters with its compositions by name."""

    candidate: RankedSet
    names: tuple[str, ...]
    builder: SystemBuilder
    systems: Mapping[str, System]
    notes: tuple[str, ...]

    def controls(self, results: Sequence[ItemResult], best: str) -> list[System]:
        """`shrunk:NAME` and `random-partner` for one of its compositions."""
        singles = [System(name, "adapter") for name in self.names]
        alone = best_system(evaluation.score(results, singles), ("adapter",))
        system = self.systems[best]
        made = self.builder.controls(alone or self.names[0], replace(system, name=system.spec))
        own = ", ".join(self.names)  # the gates depend on how many they are
        return [
            replace(control, stored=f"{control.key}({own})", members=self.names) for control in made
        ]


def build_finalist(
    candidate: RankedSet,
    adapters: Sequence[Adapter],
    base: Base,
    options: Options,
    session: Session,
) -> Finalist:
    """Composes a set of adapters by the methods and routers of the options."""
    names = tuple(adapter.name for adapter in adapters)
    own = ", ".join(names)
    with session.stage("compose"):
        prepared = prepare(adapters, options, (), base)
        builder = SystemBuilder(adapters, prepared, options, base)
        systems: dict[str, System] = {}
        notes = [*unfit_routers(options, adapters).values()]
        for spec in composition_specs(options, adapters):
            name = f"{spec}({own})"
            try:
                built = builder.build(spec, name=name)
                systems[name] = replace(built, members=names, spec=spec)
            except LoraprobeError as error:
                notes.append(f"{name} was not tried: {error}")
    return Finalist(candidate, names, builder, systems, tuple(notes))


def fit_together(adapters: Sequence[Adapter], base: Base, options: Options) -> bool:
    """Whether adapters may be composed, from what their headers say."""
    contents = compatibility.TensorChecks(adapters)
    found = compatibility.check(
        adapters, base, purpose="route", allow=options.allow, contents=contents
    )
    return found.compatible
