"""A merge as the options ask for it, and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from loraprobe import diagnostics
from loraprobe.adapters import Adapter
from loraprobe.base import Base
from loraprobe.merging import Merged, merge
from loraprobe.options import Options
from loraprobe.pipeline.transforms import Prepared
from loraprobe.records import Measurement


def merge_by(
    spec: str,
    adapters: Sequence[Adapter],
    options: Options,
    base: Base | None,
    **rest: Any,
) -> Merged:
    """A merge by one method, with space, rank, seed and allowed issues of the options."""
    return merge(
        adapters,
        spec,
        space=options.space,
        rank=options.rank,
        seed=options.seed,
        allow=options.allow,
        base_weight=base.weight if base is not None else None,
        base_parameter=base.parameter if base is not None else None,
        **rest,
    )


def merge_figures(merged: Merged, prepared: Prepared) -> tuple[Measurement, ...]:
    """Norms of the sources as they were trained, and what compression and rounding cost."""
    norms = {source.name: source.norm for source in merged.sources}
    norms |= {step.adapter: step.norm_before for step in prepared.steps}
    name = (merged.adapter.name,)
    rows = [Measurement("norm", (source,), norm) for source, norm in norms.items()]
    rows.append(Measurement("compression_error", name, merged.compression_error))
    rows.append(Measurement("rounding_error", name, merged.rounding_error))
    if merged.sketch_error:
        rows.append(Measurement("sketch_error", name, merged.sketch_error))
    return tuple(rows)


def warning_figures(adapters: Sequence[Adapter], options: Options) -> tuple[Measurement, ...]:
    """The figures of pairs of sources, as they were trained, for which a verdict warns."""
    wanted = ("norm_ratio", "cosine", "shared_initialisation")
    return diagnostics.diagnose(adapters, only=wanted, seed=options.seed)
