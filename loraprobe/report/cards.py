"""The model cards of what is made: a merge, a composition, a converted adapter.

A card's front matter says how the directory was made, from which it can be made again. It holds no
path of a machine: a local source is recorded by the name of its directory and its sha256.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from loraprobe._version import __version__
from loraprobe.adapters import Adapter, Composed
from loraprobe.compatibility.licences import licence_of_merge
from loraprobe.extension import CardPart, installed
from loraprobe.formatting import listing
from loraprobe.front_matter import KEY
from loraprobe.merging import Merged
from loraprobe.options import Options, commands
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

Made = TypeVar("Made", bound=Composed)
SCHEMA = 2  # of what stands under KEY
CARD = "README.md"
_SAFE = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)  # a base's name as it may stand in code


def with_card(made: Made, audit: Audit, options: Options, subtrahends: Sequence[Adapter]) -> Made:
    """A merge or a composition with the card that its directory will carry.

    Its sources get the licences of the audit's adapters. subtrahends: the adapters that were
    subtracted from the sources.
    """
    licences = {adapter.name: adapter.license for adapter in audit.adapters}
    sources = tuple(
        replace(row, license=licences.get(row.name, row.license)) for row in made.sources
    )
    made = replace(made, sources=sources)
    matter = front_matter(made, audit.base, audit.search, options, subtrahends)
    parts = [] if made.written is None else parts_of(made.written, audit)
    for part in parts:
        matter[KEY] |= part.facts
    names = listing([source.name for source in sources])
    title = ", ".join(filter(None, (names, display_name(made.name))))
    values = {"audit": audit, "allowed": options.allow, "sources": sources, **made.card_values}
    card_of: Callable[..., str] = partial(card_text, title=title, **values)
    return replace(made, card=card_of(made.template, matter, parts=parts), card_of=card_of)


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
        commands=commands(),
        **values,
    )
    return f"---\n{yaml.safe_dump(dict(front_matter))}---\n{text}"


def made_text(merged: Merged, norm: float, options: Options, full_rank: bool) -> str:
    """What the merge is, its norm, and whether its method ignores the weights that were given."""
    rank = "" if full_rank else f" to rank {merged.rank_text}"
    config = merged.config
    sentence = (
        f"Merged by {spec_of(config.method)} in the {config.space} space{rank}; its norm is "
        f"{norm:.4g}."
    )
    if options.given_weights and not config.method.takes_weights:
        sentence += " It ignores --weights; --method task_arithmetic uses them."
    return sentence


def front_matter(
    made: Composed,
    base: BaseSummary | None,
    learned: LearnedWeights | None,
    options: Options,
    subtrahends: Sequence[Adapter],
) -> dict[str, Any]:
    """The Hub's fields of a card, and under KEY how the merge or the composition was made."""
    choices = made.choices
    layers = learned.layers if learned else options.layers
    if layers and made.takes_weights:
        choices["layers"] = {layer: [*map(float, weights)] for layer, weights in layers.items()}
    declared = None if made.written is None else made.written.summary().base_model
    fields = {
        "library_name": made.library,
        "pipeline_tag": "text-generation",
        "tags": ["lora", made.tag, "loraprobe"],
        "base_model_relation": "adapter",
        "base_model": next((s.base_model for s in made.sources if s.base_model), declared),
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
