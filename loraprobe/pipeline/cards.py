"""The model cards of merges and compositions.

A card's front matter says how the directory was made; `loraprobe verify` makes it again from that
(`provenance` has the records). It holds no path of a machine: a local source is recorded by the
name of its directory and its sha256.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch

from loraprobe._version import __version__
from loraprobe.adapters import Adapter
from loraprobe.compatibility.licences import licence_of_merge
from loraprobe.compatibility.serving import serve_commands
from loraprobe.formatting import listing
from loraprobe.merging import METHODS, Merged
from loraprobe.options import Options
from loraprobe.pipeline.merges import rank_text
from loraprobe.pipeline.provenance import KEY, SCHEMA, SourceRecord
from loraprobe.pipeline.saved import Routed
from loraprobe.records import AdapterSummary, Audit, plain
from loraprobe.registry import short_spec, spec_of
from loraprobe.report.card import composition_card, model_card
from loraprobe.routing.constant import ConstantGates
from loraprobe.secrets import map_texts, scrub

Made = TypeVar("Made", bound=Merged | Routed)


def with_card(made: Made, audit: Audit, options: Options, general: Sequence[Adapter] = ()) -> Made:
    """A merge or a composition with the card that its directory will carry.

    general: the adapters that were subtracted from the sources.
    """
    values: dict[str, Any] = {
        "name": f"{listing([source.name for source in made.sources])}, {made.name}",
        "front_matter": front_matter(made, audit, options, general),
        "audit": audit,
        "allowed": options.allow,
    }
    if isinstance(made, Merged):
        card = model_card(
            sources=made.sources,
            method=short_spec(METHODS.make(made.spec)),
            space=made.space,
            rank=rank_text(made),
            weights=made.weights,
            compression_error=made.compression_error,
            rounding_error=made.rounding_error,
            dtype=str(made.adapter.dtype).removeprefix("torch."),
            seed=options.seed,
            serve=serve_commands(made.written, "."),
            **values,
        )
    else:
        card = composition_card(
            router=_router_text(made),
            sources=made.sources,
            why_not_peft=made.why_not_peft,
            **values,
        )
    return replace(made, card=card)


def _router_text(made: Routed) -> str:
    """The router as the command line spells it, or constant gates with their values."""
    router = made.composition.router
    if isinstance(router, ConstantGates):
        gates = "" if router.weights is None else " ".join(f"{gate:g}" for gate in router.weights)
        return f"{router.name} {gates}".strip()
    return short_spec(router)


def front_matter(
    made: Merged | Routed, audit: Audit, options: Options, general: Sequence[Adapter] = ()
) -> dict[str, Any]:
    """The Hub's fields of a card, and under KEY how the merge or the composition was made."""
    merged = isinstance(made, Merged)
    fields = {
        "library_name": "peft" if merged else "loraprobe",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "merge" if merged else "routing", "loraprobe"],
        "base_model_relation": "adapter",
        "base_model": next((s.base_model for s in made.sources if s.base_model), None),
        "license": licence_of_merge({source.name: source.license for source in made.sources}),
        KEY: {
            "schema_version": SCHEMA,
            "version": __version__,
            "torch": str(torch.__version__),
            "allow": sorted(options.allow),
            "balance": options.balance,
            "subtract": [_source(adapter.summary()) for adapter in general],
            "base": plain(audit.base),
            "sources": [_source(source) for source in made.sources],
            **(_merge_choices(made) if isinstance(made, Merged) else _router_choices(made)),
        },
    }
    return map_texts({key: held for key, held in fields.items() if held is not None}, scrub)


def _source(summary: AdapterSummary) -> dict[str, Any]:
    return {key: getattr(summary, key) for key in SourceRecord.model_fields}


def _merge_choices(merged: Merged) -> dict[str, Any]:
    """The fields of a MergeRecord that are the merge's own."""
    return {
        "method": merged.spec,
        "weights": [float(weight) for weight in merged.weights],
        "space": None if merged.space == "factors" else merged.space,
        "rank": merged.asked_rank or "auto",
        "rank_layout": merged.rank_layout,
        "dtype": str(merged.adapter.dtype).removeprefix("torch."),
        "seed": merged.seed,
    }


def _router_choices(made: Routed) -> dict[str, Any]:
    """The fields of a CompositionRecord that are the composition's own."""
    router = made.composition.router
    if isinstance(router, ConstantGates):
        gates = None if router.weights is None else list(router.weights)
        return {"name": made.name, "router": router.name, "weights": gates}
    return {"name": made.name, "router": spec_of(router), "weights": None}
