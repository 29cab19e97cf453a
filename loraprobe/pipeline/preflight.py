"""Compatibility and diagnostics of adapters, without a model; what cards say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from loraprobe import compatibility, diagnostics, hub
from loraprobe.adapters import Adapter, layer_pattern
from loraprobe.base import Base
from loraprobe.compatibility.identity import Purpose
from loraprobe.compatibility.licences import licence_issues
from loraprobe.errors import LoraprobeError
from loraprobe.front_matter import declared_licence, is_gated
from loraprobe.merging import Merged
from loraprobe.options import Options
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.transforms import PreparedAdapters
from loraprobe.records import Compatibility, Issue, LayerGroup, Measurement
from loraprobe.session import Session


@dataclass(frozen=True)
class PreflightReport:
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
        allow = session.options.allow
        return compatibility.check_headers(adapters, base, purpose=purpose, allow=allow)


def examine(
    adapters: Sequence[Adapter], base: Base | None, purpose: Purpose, session: Session
) -> PreflightReport:
    """Diagnostics and compatibility from one pass over the adapters' files.

    Diagnostics that need base weights are left out where the adapters do not fit the base.
    """
    checked = check(adapters, base, purpose, session)
    options, alone = session.options, len(adapters) == 1
    contents = compatibility.TensorChecks(adapters)
    with session.stage("diagnose"):
        rows = diagnostics.diagnose(
            adapters,
            per_module=options.per_module or alone,
            base=base if checked.compatible else None,
            on_demand=options.diagnostics if checked.compatible else (),
            seed=options.seed,
            observe=contents.take,
            progress=session.progress,
        )
    layers = layer_groups(adapters[0], rows) if alone else ()
    if not options.per_module:
        rows = tuple(row for row in rows if row.module is None)
    with session.stage("check"):
        checked = compatibility.with_contents(checked, contents, options.allow)
    return PreflightReport(checked, rows, layers)


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


def with_licences(
    preflight: PreflightReport, inputs: Inputs
) -> tuple[PreflightReport, tuple[Issue, ...]]:
    """The report with the licences that the adapters' cards declare, and the findings for
    somebody who publishes what is made of the adapters and the base.

    A card that cannot be read counts as one without a licence; a finding says so.
    """
    cards = {one.name: _card(partial(hub.model_card, one)) for one in inputs.given}
    licences = {name: declared_licence(card) for name, card in cards.items()}
    known = dict(licences)
    if inputs.base is not None:
        file = inputs.base.path / "README.md"
        cards["the base"] = _card(partial(hub.read_card, file, str(file)))
        if licence := declared_licence(cards["the base"]):
            known["the base"] = licence
    gated = [name for name, card in cards.items() if is_gated(card)]
    return replace(preflight, licences=licences), tuple(licence_issues(known, gated))


def _card(read: Callable[[], str | None]) -> str | None:
    try:
        return read()
    except LoraprobeError:
        return None


def with_issues(checked: Compatibility, issues: Iterable[Issue]) -> Compatibility:
    """The issues with further ones after them, each once."""
    return Compatibility(tuple(dict.fromkeys((*checked.issues, *issues))))


def merge_figures(
    merged: Merged, norm: float, prepared: PreparedAdapters
) -> tuple[Measurement, ...]:
    """Norms of the untransformed sources and of the merge, and the merge's errors."""
    norms = {source.name: source.norm for source in merged.sources}
    norms |= {step.adapter: step.norm_before for step in prepared.steps}
    name = (merged.adapter.name,)
    norms[merged.adapter.name] = norm
    rows = [Measurement("norm", (source,), norm) for source, norm in norms.items()]
    rows.append(Measurement("compression_error", name, merged.compression_error))
    rows.append(Measurement("rounding_error", name, merged.rounding_error))
    if merged.sketch_error:
        rows.append(Measurement("sketch_error", name, merged.sketch_error))
    return tuple(rows)


WARNED = ("norm_ratio", "cosine", "shared_initialisation")


def warning_figures(
    adapters: Sequence[Adapter], options: Options, *others: str
) -> tuple[Measurement, ...]:
    """The figures of pairs of untransformed sources for which a verdict warns.

    others: names of more diagnostics.
    """
    return diagnostics.diagnose(adapters, only=(*WARNED, *others), seed=options.seed)
