"""The figures and words of a merge."""

from __future__ import annotations

from collections.abc import Sequence

from loraprobe import diagnostics
from loraprobe.adapters import Adapter
from loraprobe.merging import METHODS, Merged
from loraprobe.options import Options
from loraprobe.pipeline.transforms import Prepared
from loraprobe.records import Measurement


def made_text(merged: Merged, norm: float, options: Options) -> str:
    """What the merge is, its norm, and whether its method ignores the weights that were given."""
    made = f"Merged by {merged.spec} in the {merged.space} space to rank {rank_text(merged)}"
    made += f"; its norm is {norm:.4g}."
    if options.given_weights and not METHODS.make(merged.spec).takes_weights:
        made += " It ignores --weights; --method task_arithmetic uses them."
    return made


def rank_text(merged: Merged) -> str:
    """The rank of a merge's modules, such as "8" or "4 to 16", and how they are written."""
    low, high = merged.adapter.rank_range
    if low == high:
        return str(low)
    filled = f", filled up with zeros to {high}" if merged.rank_layout == "portable" else ""
    return f"{low} to {high}{filled}"


def merge_figures(merged: Merged, norm: float, prepared: Prepared) -> tuple[Measurement, ...]:
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


def warning_figures(
    adapters: Sequence[Adapter], options: Options, *others: str
) -> tuple[Measurement, ...]:
    """The figures of pairs of untransformed sources for which a verdict warns.

    others: names of more diagnostics.
    """
    wanted = ("norm_ratio", "cosine", "shared_initialisation", *others)
    return diagnostics.diagnose(adapters, only=wanted, seed=options.seed)
