"""An audit as Python and notebooks show it, and references as they were typed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from loraprobe.adapters import Adapter, is_path, local_name
from loraprobe.records import Audit, Verdict
from loraprobe.report.answer import answer


class ShownAudit(Audit):
    """An audit whose repr is its answer, in at most twelve lines.

    `typed`: a published name -> the reference as the caller typed it, for the commands of the repr.
    """

    typed: Mapping[str, str] = {}

    def __repr__(self) -> str:
        return str(answer(self).typed(self.typed))

    def _repr_html_(self) -> str:
        """The verdict and the first sections of the page, for notebooks."""
        from loraprobe.report.html import fragment  # draws with matplotlib, which is slow to import

        return fragment(self)


class JudgedAudit(ShownAudit):
    """An audit of several adapters, which always has a verdict."""

    verdict: Verdict


def with_references(audit: Audit, given: Iterable[Any]) -> None:
    """Lets the repr of an audit name local places as they were given, one by one or in lists."""
    typed = typed_references(_as_typed(given))
    object.__setattr__(audit, "typed", typed)  # it is no field of the record


def _as_typed(given: Iterable[Any]) -> Iterator[str]:
    """The references to adapters, base and tasks; a loaded adapter has the one that it came by."""
    for one in given:
        if isinstance(one, Adapter):
            place = one.source.reference
            yield place if local_name(place) == one.name else f"{one.name}={place}"
        elif isinstance(one, (str, Path)):
            yield str(one)
        elif isinstance(one, (list, tuple)):
            yield from _as_typed(one)


def typed_references(arguments: Iterable[str]) -> dict[str, str]:
    """What a report calls a local reference -> the argument that named it.

    The second place with the last part "a" is "a-2=a", as `load_all` names it.
    """
    named, typed = dict[str, str](), dict[str, str]()
    for argument in arguments:
        if argument.startswith("@"):  # a file of references
            typed[f"@{local_name(argument[1:])}"] = argument
            continue
        name, _, place = argument.rpartition("=")
        if not (is_path(place) or os.path.exists(place)):
            continue
        public = local_name(place)
        if name and not name.startswith("-"):
            named[name] = named[f"{name}={public}"] = argument
            named.setdefault(public, place)
            continue
        key, number = public, 1
        while key in typed:
            number += 1
            key = f"{public}-{number}={public}"
        typed[key] = place if number == 1 else f"{public}-{number}={place}"
    return named | typed
