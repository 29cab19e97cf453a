"""Finds the sources of a merge or a composition: by commit on the Hub, else by sha256.

A card names a local source by its directory's name and the sha256 of its weights. It is searched
among the references that the user gives, then in the directories around the verified and the
current one: first those of its name, then all others, up to a bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import TypeVar

from loraprobe import hub
from loraprobe.adapters import Adapter, Source
from loraprobe.adapters.config import CONFIG
from loraprobe.base import Base, open_base
from loraprobe.errors import LoraprobeError
from loraprobe.pipeline.cards import BaseRecord, SourceRecord
from loraprobe.pipeline.inputs import base_of
from loraprobe.records import Check

LOOKED_AT = 500  # directories whose names are read
Opened = TypeVar("Opened", Adapter, Base)
HASHED = 100  # adapters whose weights are hashed for one source


def find_source(
    record: SourceRecord, place: Path, given: Sequence[str] = ()
) -> tuple[Adapter | None, Check]:
    """The source that the card of `place` records, or None, and the check of its sha256.

    given: the user's references.
    """
    label = f"source {record.name}"
    try:
        found = _matching(record, place, given)
    except LoraprobeError as error:
        return None, Check(label, False, str(error))
    if found is None:
        message = (
            f"No adapter with the weights {record.sha256[:12]}... was found here; its name was "
            f"{record.reference}. Say where it is: loraprobe verify DIR REF."
        )
        return None, Check(label, False, message)
    message = f"{record.reference}: sha256 {found.sha256[:12]}..."
    if found.sha256 != record.sha256:
        message += f", but it was made of {record.sha256[:12]}...; the source changed."
        return None, Check(label, False, message)
    source = Source(record.reference, found.source.path, record.commit)
    return replace(found.renamed(record.name), source=source), Check(label, True, message)


def _matching(record: SourceRecord, place: Path, given: Sequence[str]) -> Adapter | None:
    """The adapter of that commit or hash, else a changed one of that name, else None."""
    if record.commit:
        return hub.load(_pinned(record.reference, record.commit))
    same_name: Adapter | None = None
    for adapter in chain(map(hub.load, given), _nearby(record.reference, place)):
        if adapter.sha256 == record.sha256:
            return adapter
        if same_name is None and adapter.source.public == record.reference:
            same_name = adapter
    return same_name


def _nearby(name: str, place: Path) -> Iterator[Adapter]:
    """Adapters of nearby directories, those of this name first."""
    every = islice(_directories(place), LOOKED_AT)
    ordered = sorted(every, key=lambda directory: directory.name != name)
    held = (directory for directory in ordered if _is_adapter(directory, place))
    opened = (_opened(hub.load, directory) for directory in held)
    return islice(filter(None, opened), HASHED)


def _is_adapter(directory: Path, place: Path) -> bool:
    """Whether a directory holds an adapter and does not belong to the verified one."""
    try:
        inside = directory.resolve().is_relative_to(place.resolve())
        return not inside and (directory / CONFIG).is_file()
    except OSError:
        return False


def _opened(read: Callable[[Path], Opened], directory: Path) -> Opened | None:
    try:
        return read(directory)
    except (LoraprobeError, OSError):
        return None


def find_base(record: BaseRecord, place: Path, given: str | None) -> tuple[Base | None, Check]:
    """The base that the card records: `given`, else its commit, else a nearby directory."""
    found: Base | None
    try:
        if given is not None or record.commit is not None:
            found = base_of(given or _pinned(record.reference, record.commit or ""), ())
        else:
            nearby = islice(_directories(place), LOOKED_AT)
            named = (_opened(open_base, one) for one in nearby if one.name == record.reference)
            found = next(filter(None, named), None)
    except LoraprobeError as error:
        return None, Check("base", False, str(error))
    if found is None:
        message = f"No base model {record.reference} was found here; give --base DIR."
        return None, Check("base", False, message)
    if record.sha256 and found.sha256 != record.sha256:
        message = f"{record.reference} has other weights than the base that was used."
        return None, Check("base", False, message)
    weights = f"sha256 {found.sha256[:12]}..." if record.sha256 else "its weights were not hashed"
    check = Check("base", True, f"{record.reference}: {record.commit or weights}")
    return replace(found, reference=record.reference, commit=record.commit), check


def _directories(place: Path) -> Iterator[Path]:
    """Siblings of the place, the current directory, their children, and siblings of parents.

    A folder is listed only when the directories before it were not enough.
    """
    roots, seen = [place.resolve().parent, Path.cwd()], set()
    nearest = [child for root in roots for child in _children(root)]
    below = (child for directory in nearest for child in _children(directory))
    around_parents = (child for root in roots for child in _children(root.parent))
    for found in chain(roots, nearest, below, around_parents):
        if found not in seen:
            seen.add(found)
            yield found


def _children(folder: Path) -> list[Path]:
    try:
        held = (child for child in folder.iterdir() if child.name[0] != "." and child.is_dir())
        return sorted(islice(held, LOOKED_AT))
    except OSError:
        return []


def _pinned(reference: str, commit: str) -> str:
    """A reference at the commit that was used."""
    repo, colon, folder = reference.partition(":")
    return f"{repo.partition('@')[0]}@{commit}{colon}{folder}"
