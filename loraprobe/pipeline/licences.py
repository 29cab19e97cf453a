"""The licences of the sources of a merge or a composition, for its card and its findings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from loraprobe.adapters import Adapter
from loraprobe.errors import LoraprobeError
from loraprobe.records import Issue

if TYPE_CHECKING:
    from loraprobe.base import Base
    from loraprobe.merging import Merged


def with_licences(
    merged: Merged, adapters: Sequence[Adapter], base: Base | None = None
) -> tuple[Merged, list[Issue]]:
    """The merge with its sources' licences, and the findings about them and the base's."""
    from loraprobe.compatibility.licences import licence_of_merge

    licences, issues = declared(adapters, base)
    sources = tuple(replace(s, license=licences.get(s.name)) for s in merged.sources)
    return replace(merged, sources=sources, license=licence_of_merge(licences)), issues


def declared(
    adapters: Sequence[Adapter], base: Base | None = None
) -> tuple[dict[str, str | None], list[Issue]]:
    """The licence that each adapter's card declares, and the findings about them and the base's.

    A card that cannot be read counts as one without a licence; a finding says so.
    """
    from loraprobe import hub
    from loraprobe.compatibility.licences import licence_issues

    cards = {adapter.name: _card(partial(hub.model_card, adapter)) for adapter in adapters}
    licences = {name: hub.declared_licence(card) for name, card in cards.items()}
    base_card = None if base is None else base.path / "README.md"
    of_base = (
        _card(partial(hub.read_card, base_card, str(base_card))) if base_card is not None else None
    )
    declared_licences, all_cards = dict(licences), cards | {"the base": of_base}
    if hub.declared_licence(of_base):
        declared_licences["the base"] = hub.declared_licence(of_base)
    gated = [name for name, card in all_cards.items() if hub.is_gated(card)]
    return licences, list(licence_issues(declared_licences, gated))


def _card(read: Callable[[], str | None]) -> str | None:
    try:
        return read()
    except LoraprobeError:
        return None
