"""Completion in the shell of the names that options and arguments take."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraprobe.cli.parameters import Texts

if TYPE_CHECKING:
    from loraprobe.registry import Registry

Completion = Callable[[str], list[str]]  # the beginning of a word -> the words that go on from it


def _names(*places: str) -> Completion:
    """Completes the names in registries and other collections.

    places: MODULE.NAME of each, which is imported when a shell asks.
    """

    def complete(incomplete: str) -> list[str]:
        from loraprobe.registry import Registry

        found = []
        for module, _, name in (place.rpartition(".") for place in places):
            known = getattr(importlib.import_module(f"loraprobe.{module}"), name)
            complete_one = _specs if isinstance(known, Registry) else _starting
            found += complete_one(known, incomplete)
        return found

    return complete


def _specs(registry: Registry[Any], incomplete: str) -> list[str]:
    """Names that go on from a text; behind a colon the options of the named member."""
    name, colon, rest = incomplete.partition(":")
    if not colon or name not in registry:
        return _starting(registry.names(), incomplete.replace("-", "_"))
    fields = dataclasses.fields(registry.get(name.replace("-", "_")))
    done, comma, last = rest.rpartition(",")
    head = f"{name}:{done}{comma}"
    return [head + option for option in _starting((f"{f.name.rstrip('_')}=" for f in fields), last)]


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


complete_methods = _names("merging.METHODS")
complete_routers = _names("routing.ROUTERS")
_systems = _names("merging.METHODS", "routing.ROUTERS", "pipeline.systems.FIXED")
# Types of options whose values are completed.
MethodSpecs = Annotated[Texts, typer.Option(autocompletion=complete_methods)]
RouterSpecs = Annotated[Texts, typer.Option(autocompletion=complete_routers)]
SystemSpecs = Annotated[Texts, typer.Option(autocompletion=_systems)]
DiagnosticSpecs = Annotated[Texts, typer.Option(autocompletion=_names("diagnostics.DIAGNOSTICS"))]
IssueCodes = Annotated[Texts, typer.Option(autocompletion=_names("compatibility.CODES"))]


def scenarios(incomplete: str) -> list[str]:
    """Scenarios of the demo."""
    from loraprobe.demo import shipped_world

    return _starting(shipped_world().scenarios, incomplete)
