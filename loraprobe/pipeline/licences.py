"""The licences of what is merged or composed, carried to its card, with what they ask."""

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

    A card that cannot be had counts as one without a licence: that is said, and stops nothing.
    """
    from loraprobe import hub
    from loraprobe.compatibility.licences import licence_issues

    cards = {adapter.name: _card(partial(hub.model_card, adapter)) for adapter in adapters}
    licences = {name: hub.declared_licence(card) for name, card in cards.items()}
    beside = None if base is None else base.path / "README.md"
    of_base = _card(partial(hub.read_card, beside, str(beside))) if beside is not None else None
    asked, held = dict(licences), cards | {"the base": of_base}
    if hub.declared_licence(of_base):
        asked["the base"] = hub.declared_licence(of_base)
    gated = [name for name, card in held.items() if hub.is_gated(card)]
    return licences, list(licence_issues(asked, gated))


def _card(read: Callable[[], str | None]) -> str | None:
    try:
        return read()
    except LoraprobeError:
        return None
