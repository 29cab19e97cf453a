"""The model cards of what is made: a merge, a composition, a converted adapter.

A card's front matter says how the directory was made, from which it can be made again. It holds no
path of a machine: a local source is recorded by the name of its directory and its sha256.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from loraprobe._version import __version__
from loraprobe.adapters import Adapter
from loraprobe.compatibility.licences import licence_of_merge
from loraprobe.extension import CardPart, installed
from loraprobe.formatting import listing
from loraprobe.front_matter import KEY
from loraprobe.merging import Merged
from loraprobe.options import Options
from loraprobe.records import (
    AdapterSummary,
    Audit,
    BaseSummary,
    LearnedWeights,
    display_name,
    plain,
)
from loraprobe.registry import spec_of
from loraprobe.report.answer import answer
from loraprobe.report.markdown import Verbatim, filled
from loraprobe.report.sections import evaluations
from loraprobe.secrets import map_texts, scrub

if TYPE_CHECKING:
    from loraprobe.routing._saved import Routed

Made = TypeVar("Made", bound="Merged | Routed")
SCHEMA = 2  # of what stands under KEY
CARD = "README.md"
_SAFE = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)  # a base's name as it may stand in code


def with_card(made: Made, audit: Audit, options: Options, subtrahends: Sequence[Adapter]) -> Made:
    """A merge or a composition with the card that its directory will carry.

    Its sources get the licences of the audit's adapters. subtrahends: the adapters that were
    subtracted from the sources.
    """
    audited = {adapter.name: adapter for adapter in audit.adapters}
    rows = made.sources
    if not isinstance(made, Merged):
        rows = tuple(expert.summary() for expert in made.composition.experts)
    sources = tuple(
        replace(row, license=audited[row.name].license) if row.name in audited else row
        for row in rows
    )
    made = replace(made, sources=sources)
    matter = front_matter(made, audit.base, audit.search, options, subtrahends)
    parts = parts_of(made.written, audit) if isinstance(made, Merged) else []
    for part in parts:
        matter[KEY] |= part.facts
    title = f"{listing([source.name for source in sources])}, {display_name(made.name)}"
    card = partial(card_text, title=title, audit=audit, allowed=options.allow, sources=sources)
    if not isinstance(made, Merged):
        router, spelled = made.composition.router, spec_of(made.composition.router, short=True)
        if router.constant:  # with its values
            gates = getattr(router, "weights", None) or ()
            spelled = " ".join([router.name, *(f"{gate:g}" for gate in gates)])
        values: dict[str, Any] = {"why_not_peft": made.why_not_peft, "learned": made.learned}
        return replace(made, card=card("composition.md.jinja", matter, router=spelled, **values))
    card_of = partial(
        card,
        method=spec_of(made.config.method, short=True),
        space=made.config.space,
        weights=", ".join(f"{weight:g}" for weight in made.weights),
        negated=[s.name for s, w in zip(sources, made.weights, strict=True) if w < 0],
        seed=made.config.seed,
    )
    text = card_of(
        "card.md.jinja",
        matter,
        rank=rank_text(made),
        compression_error=made.compression_error,
        rounding_error=made.rounding_error,
        dtype=str(made.adapter.dtype).removeprefix("torch."),
        parts=parts,
    )
    return replace(made, card=text, card_of=card_of)


def parts_of(adapter: Adapter, audit: Audit | None = None) -> list[CardPart]:
    """What extensions tell on the card of an adapter. audit: of the command that made it, if it is
    a merge."""
    parts = (part for one in installed() for part in one.card_parts(adapter, audit))
    return [replace(part, text=Verbatim(part.text)) for part in parts]


def card_text(
    template: str | Path,
    front_matter: Mapping[str, Any],
    *,
    audit: Audit,
    allowed: Collection[str],
    **values: Any,
) -> str:
    """A card from its template. Text from other people's files never becomes markup in it.

    front_matter: holds how the directory was made, from which `loraprobe verify` makes it again.
    audit: findings, what was done to the adapters first, and scores where they were measured.
    values: what else the template shows.
    """
    import yaml

    base = front_matter.get("base_model")
    text = filled(
        template,
        version=__version__,
        base_model=base,
        base_text=Verbatim(f'"{base if base and _SAFE.fullmatch(base) else "the base"}"'),
        base_used=audit.base is not None,
        issues=audit.compatibility.issues,
        allowed=allowed,
        transformations=audit.transformations,
        search=audit.search,
        scores=evaluations(audit),
        measured=audit.verdict is not None and audit.verdict.gain is not None,
        told=answer(audit),
        **values,
    )
    return f"---\n{yaml.safe_dump(dict(front_matter))}---\n{text}"


def made_text(merged: Merged, norm: float, options: Options, uncut: bool) -> str:
    """What the merge is, its norm, and whether its method ignores the weights that were given."""
    rank = "" if uncut else f" to rank {rank_text(merged)}"
    config = merged.config
    sentence = (
        f"Merged by {spec_of(config.method)} in the {config.space} space{rank}; its norm is "
        f"{norm:.4g}."
    )
    if options.given_weights and not config.method.takes_weights:
        sentence += " It ignores --weights; --method task_arithmetic uses them."
    return sentence


def rank_text(merged: Merged) -> str:
    """The rank of a merge's modules, such as "8" or "4 to 16", and how they are written."""
    low, high = merged.adapter.rank_range
    if low == high:
        return str(low)
    return f"{low} to {high}, filled up with zeros to {high}"


def front_matter(
    made: Merged | Routed,
    base: BaseSummary | None,
    learned: LearnedWeights | None,
    options: Options,
    subtrahends: Sequence[Adapter],
) -> dict[str, Any]:
    """The Hub's fields of a card, and under KEY how the merge or the composition was made."""
    merged = isinstance(made, Merged)
    choices: dict[str, Any]
    if isinstance(made, Merged):
        choices = {
            "method": spec_of(made.config.method),
            "weights": [float(weight) for weight in made.weights],
            "space": None if made.config.space == "factors" else made.config.space,
            "rank": made.config.rank or "auto",
            "rank_layout": "portable",
            "dtype": str(made.adapter.dtype).removeprefix("torch."),
            "seed": made.config.seed,
        }
        weighted = made.config.method.takes_weights
    else:
        router = made.composition.router
        gates = getattr(router, "weights", None)
        choices = {
            "name": made.name,
            "router": router.name if router.constant else spec_of(router),
            "weights": gates if gates is None else list(gates),
        }
        if made.learned is not None:
            choices["learned"] = dict(made.learned)
        weighted = router.constant
    layers = learned.layers if learned else options.layers
    if layers and weighted:
        choices["layers"] = {layer: [*map(float, weights)] for layer, weights in layers.items()}
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
            "subtract": [_source(adapter.summary()) for adapter in subtrahends],
            "base": plain(base),
            "sources": [_source(source) for source in made.sources],
            **choices,
        },
    }
    return map_texts({key: value for key, value in fields.items() if value is not None}, scrub)


def _source(summary: AdapterSummary) -> dict[str, Any]:
    return {key: getattr(summary, key) for key in ("reference", "commit", "sha256", "name")}
