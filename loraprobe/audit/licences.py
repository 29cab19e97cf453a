"""The licences of a merge's sources, carried to its card, with what they ask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from loraprobe.adapter import Adapter
from loraprobe.errors import LoraprobeError
from loraprobe.records import Issue

if TYPE_CHECKING:
    from loraprobe.base import Base
    from loraprobe.merging import Merged


def with_licences(
    merged: Merged, adapters: Sequence[Adapter], base: Base | None = None
) -> tuple[Merged, list[Issue]]:
    """The merge with its sources' licences, and the findings about them and the base's.

    A card that cannot be had counts as one without a licence: that is said, and stops nothing.
    """
    from loraprobe import hub
    from loraprobe.compatibility.licences import licence_issues, licence_of_merge

    licences: dict[str, str | None] = {}
    for adapter in adapters:
        try:
            licences[adapter.name] = hub.declared_licence(hub.model_card(adapter))
        except LoraprobeError:
            licences[adapter.name] = None
    sources = tuple(replace(s, license=licences.get(s.name)) for s in merged.sources)
    of_base = _of_base(base)
    asked = licences | ({"the base": of_base} if of_base else {})
    named = replace(merged, sources=sources, license=licence_of_merge(licences))
    return named, list(licence_issues(asked))


def _of_base(base: Base | None) -> str | None:
    """The licence beside a base's files, where there is a card."""
    from loraprobe.hub import declared_licence

    card = None if base is None else base.path / "README.md"
    if card is None or not card.is_file():
        return None
    return declared_licence(card.read_text(encoding="utf-8", errors="replace"))
