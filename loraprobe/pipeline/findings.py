"""Findings that the weights of adapters do not hold: of their cards, and of servers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeVar

from loraprobe import hub
from loraprobe.adapters import Adapter
from loraprobe.base import Base
from loraprobe.compatibility.licences import licence_issues
from loraprobe.compatibility.serving import serving_issues
from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.merging import Merged
from loraprobe.options import Options
from loraprobe.pipeline.audits import with_issues
from loraprobe.pipeline.examination import Examination
from loraprobe.pipeline.inputs import Inputs
from loraprobe.pipeline.saved import Routed
from loraprobe.records import Issue

Made = TypeVar("Made", bound=Merged | Routed)


def with_servers(
    examined: Examination, inputs: Inputs, options: Options, asks_base: bool
) -> Examination:
    """The findings with what the servers of --serve do not read in the file of one adapter.

    Raises UsageError for several adapters, and where the base is asked.
    """
    if len(inputs.given) > 1 or asks_base:
        raise UsageError(
            "--serve looks at the file of one adapter; give one, without --task and --probe. A "
            "merge is written so that servers read it: inspect its directory."
        )
    told = serving_issues(inputs.given[0], options.serve)
    return replace(examined, compatibility=with_issues(examined.compatibility, told))


def licensed(examined: Examination, inputs: Inputs) -> Examination:
    """The findings with the licences of the adapters' cards."""
    licences, issues = _declared(inputs.given, inputs.base)
    found = with_issues(examined.compatibility, issues)
    return replace(examined, compatibility=found, licences=licences)


def with_licences(made: Made, licences: Mapping[str, str | None]) -> Made:
    """A merge or a composition with the licences of its sources."""
    if isinstance(made, Routed):
        return replace(made, licences=licences)
    sources = tuple(replace(source, license=licences.get(source.name)) for source in made.sources)
    return replace(made, sources=sources)


def _declared(
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
