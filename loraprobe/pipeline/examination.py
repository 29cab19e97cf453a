"""Compatibility and diagnostics of adapters, without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from loraprobe import compatibility, diagnostics
from loraprobe.adapters import Adapter, layer_pattern
from loraprobe.base import Base
from loraprobe.compatibility.identity import Purpose
from loraprobe.options import Options
from loraprobe.pipeline.session import Session
from loraprobe.records import Compatibility, LayerGroup, Measurement


@dataclass(frozen=True)
class Examination:
    """Findings and figures of one pass over the adapters' files.

    `layers` describes a single adapter layer by layer; it is empty for several. `licences` are
    those of the adapters' cards, by name, where cards were read.
    """

    compatibility: Compatibility
    diagnostics: tuple[Measurement, ...] = ()
    layers: tuple[LayerGroup, ...] = ()
    licences: Mapping[str, str | None] = field(default_factory=dict)


def check(
    adapters: Sequence[Adapter], base: Base | None, purpose: Purpose, session: Session
) -> Compatibility:
    """Findings from the files' headers; no factor is read."""
    with session.stage("check"):
        return compatibility.check(
            adapters,
            base,
            purpose=purpose,
            allow=session.options.allow,
            contents=compatibility.TensorChecks(adapters),
        )


def examine(
    adapters: Sequence[Adapter], base: Base | None, purpose: Purpose, session: Session
) -> Examination:
    """Diagnostics and compatibility from one pass over the adapters' files.

    Diagnostics that need base weights are left out where the adapters do not fit the base.
    """
    found = check(adapters, base, purpose, session)
    options, alone = session.options, len(adapters) == 1
    contents = compatibility.TensorChecks(adapters)
    with session.stage("diagnose"):
        made = planned(adapters, base if found.compatible else None, options, found.compatible)
        batches = session.units.observe(made, found.compatible, session.progress)
        rows = made.measurements(batches, [contents.take])
    layers = layer_groups(adapters[0], rows) if alone else ()
    if not options.per_module:
        rows = tuple(row for row in rows if row.module is None)
    with session.stage("check"):
        found = compatibility.with_contents(found, contents, options.allow)
    return Examination(found, rows, layers)


def planned(
    adapters: Sequence[Adapter], base: Base | None, options: Options, compatible: bool = True
) -> diagnostics.Plan:
    """The statistics that `examine` computes. base: None where the adapters do not fit it."""
    return diagnostics.plan(
        adapters,
        per_module=options.per_module or len(adapters) == 1,
        base=base,
        on_demand=options.diagnostics if compatible else (),
        exact=options.exact,
        seed=options.seed,
    )


def layer_groups(adapter: Adapter, rows: Sequence[Measurement]) -> tuple[LayerGroup, ...]:
    """The modules of one adapter; a module that repeats in every layer is one row."""
    norms: Mapping[str | None, float | None] = {
        row.module: row.value for row in rows if row.name == "norm" and row.module
    }
    groups: dict[tuple[str, str], list[str]] = {}
    for path, info in adapter.layout.items():
        groups.setdefault((layer_pattern(path), info.kind), []).append(path)
    made = []
    for (pattern, kind), paths in groups.items():
        infos = [adapter.layout[path] for path in paths]
        known = [norm for path in paths if (norm := norms.get(path)) is not None]
        made.append(
            LayerGroup(
                adapter=adapter.name,
                pattern=pattern,
                kind=kind,
                modules=len(paths),
                rank=_range([i.rank for i in infos]),
                in_features=_range([i.in_features for i in infos]),
                out_features=_range([i.out_features for i in infos]),
                scaling=_range([i.scaling for i in infos]),
                norm=_range(known) if known else None,
            )
        )
    return tuple(made)


def _range(values: Sequence[Any]) -> tuple[Any, Any]:
    return min(values), max(values)
