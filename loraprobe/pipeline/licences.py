"""The licences of the sources of a merge or a composition, for its card and its findings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from loraprobe import hub
from loraprobe.compatibility.licences import licence_issues
from loraprobe.errors import LoraprobeError
from loraprobe.merging import Merged
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.saved import Routed
from loraprobe.records import Issue

Made = TypeVar("Made", bound=Merged | Routed)


def with_licences(made: Made, inputs: Inputs) -> tuple[Made, list[Issue]]:
    """A merge or a composition with the licences that its sources' cards declare, and findings
    about them and the base's.

    A card that cannot be read counts as one without a licence; a finding says so.
    """
    cards = {adapter.name: _card(partial(hub.model_card, adapter)) for adapter in inputs.given}
    licences = {name: hub.declared_licence(card) for name, card in cards.items()}
    known = dict(licences)
    if inputs.base is not None:
        file = inputs.base.path / "README.md"
        cards["the base"] = _card(partial(hub.read_card, file, str(file)))
        if licence := hub.declared_licence(cards["the base"]):
            known["the base"] = licence
    gated = [name for name, card in cards.items() if hub.is_gated(card)]
    issues = list(licence_issues(known, gated))
    if isinstance(made, Routed):
        return replace(made, licences=licences), issues
    sources = tuple(replace(source, license=licences.get(source.name)) for source in made.sources)
    return replace(made, sources=sources), issues


def _card(read: Callable[[], str | None]) -> str | None:
    try:
        return read()
    except LoraprobeError:
        return None
