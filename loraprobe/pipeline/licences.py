"""The licences of the sources of a merge or a composition, for its card and its findings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from loraprobe import hub
from loraprobe.adapters import Adapter
from loraprobe.base import Base
from loraprobe.compatibility.licences import licence_issues
from loraprobe.errors import LoraprobeError
from loraprobe.merging import Merged
from loraprobe.pipeline.saved import Routed
from loraprobe.records import Issue

Made = TypeVar("Made", bound=Merged | Routed)
Licences = Mapping[str, str | None]  # name of an adapter -> what its card declares


def with_licences(made: Made, licences: Licences) -> Made:
    """A merge or a composition with the licences of its sources."""
    if isinstance(made, Routed):
        return replace(made, licences=licences)
    sources = tuple(replace(source, license=licences.get(source.name)) for source in made.sources)
    return replace(made, sources=sources)


def declared(
    adapters: Sequence[Adapter], base: Base | None = None
) -> tuple[dict[str, str | None], list[Issue]]:
    """The licence that each adapter's card declares, and the findings about them and the base's.

    A card that cannot be read counts as one without a licence; a finding says so.
    """
    cards = {adapter.name: _card(partial(hub.model_card, adapter)) for adapter in adapters}
    licences = {name: hub.declared_licence(card) for name, card in cards.items()}
    known = dict(licences)
    if base is not None:
        file = base.path / "README.md"
        cards["the base"] = _card(partial(hub.read_card, file, str(file)))
        if licence := hub.declared_licence(cards["the base"]):
            known["the base"] = licence
    gated = [name for name, card in cards.items() if hub.is_gated(card)]
    return licences, list(licence_issues(known, gated))


def _card(read: Callable[[], str | None]) -> str | None:
    try:
        return read()
    except LoraprobeError:
        return None
