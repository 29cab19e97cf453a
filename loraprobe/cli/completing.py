"""Completion in the shell of the names that options and arguments take."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from loraprobe.registry import Registry


def _specs(registry: Registry[Any], incomplete: str) -> list[str]:
    """Names that go on from a text; behind a colon the options of the named member."""
    name, colon, rest = incomplete.partition(":")
    if not colon or name.replace("-", "_") not in registry.names():
        return _starting(registry.names(), incomplete.replace("-", "_"))
    fields = dataclasses.fields(registry.get(name.replace("-", "_")))
    done, comma, last = rest.rpartition(",")
    head = f"{name}:{done}{comma}"
    return [head + option for option in _starting((f"{f.name.rstrip('_')}=" for f in fields), last)]


def _starting(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def methods(incomplete: str) -> list[str]:
    """Merge methods, and options of one."""
    from loraprobe.merging import METHODS

    return _specs(METHODS, incomplete)


def routers(incomplete: str) -> list[str]:
    """Routers, and options of one."""
    from loraprobe.routing import ROUTERS

    return _specs(ROUTERS, incomplete)


def systems(incomplete: str) -> list[str]:
    """Merge methods, routers, and the systems that are neither."""
    from loraprobe.pipeline.systems import FIXED

    return methods(incomplete) + routers(incomplete) + _starting(FIXED, incomplete)


def diagnostics(incomplete: str) -> list[str]:
    """Diagnostics."""
    from loraprobe.diagnostics import DIAGNOSTICS

    return _specs(DIAGNOSTICS, incomplete)


def codes(incomplete: str) -> list[str]:
    """Codes of findings."""
    from loraprobe.compatibility import CODES

    return _starting(CODES, incomplete)


def scenarios(incomplete: str) -> list[str]:
    """Scenarios of the demo."""
    from loraprobe.demo import shipped_world

    return _starting(shipped_world().scenarios, incomplete)


# Field of Options -> what completes its values.
OF_OPTIONS: dict[str, Callable[[str], list[str]]] = {
    "methods": methods,
    "routers": routers,
    "systems": systems,
    "diagnostics": diagnostics,
    "allow": codes,
}
