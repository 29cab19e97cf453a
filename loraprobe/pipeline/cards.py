"""The model cards of merges and compositions."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loraprobe.options import Options
from loraprobe.pipeline.provenance import composition_fields, merge_fields
from loraprobe.records import Audit
from loraprobe.report.card import composition_card, model_card

if TYPE_CHECKING:
    from loraprobe.merging import Merged
    from loraprobe.pipeline.saved import Routed


def with_card(merged: Merged, audit: Audit, options: Options) -> Merged:
    """The merge with the card that its directory will carry."""
    low, high = merged.adapter.rank_range
    card = model_card(
        name=merged.adapter.name,
        front_matter=merge_fields(merged, audit, options),
        sources=merged.sources,
        method=merged.method,
        space=merged.space,
        rank=str(low) if low == high else f"{low} to {high}",
        weights=merged.weights,
        compression_error=merged.compression_error,
        rounding_error=merged.rounding_error,
        dtype=str(merged.adapter.dtype).removeprefix("torch."),
        seed=options.seed,
        **_findings(audit, options),
    )
    return replace(merged, card=card)


def with_composition_card(made: Routed, audit: Audit, options: Options) -> Routed:
    """The composition with the card that its directory will carry."""
    experts = [
        replace(expert.summary(), license=made.licences.get(expert.name))
        for expert in made.composition.experts
    ]
    card = composition_card(
        name=made.composition.name,
        front_matter=composition_fields(made, audit, options),
        router=repr(made.composition.router),
        experts=experts,
        why_not_peft=made.why_not_peft,
        missed_prototype=made.missed_prototype,
        **_findings(audit, options),
    )
    return replace(made, card=card)


def _findings(audit: Audit, options: Options) -> dict[str, Any]:
    return {
        "issues": audit.compatibility.issues,
        "allowed": options.allow,
        "verdict": audit.verdict if audit.evaluation else None,
        "transformations": audit.transformations,
        "search": audit.search,
    }
