"""Finds the sources of a merge or a composition: by commit on the Hub, else by sha256.

A card names a local source by its directory's name and the sha256 of its weights. It is searched
among the references that the user gives, then in the directories around the verified and the
current one: first those of its name, then all others, up to a bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from loraprobe.adapters import Adapter, Source
from loraprobe.base import Base
from loraprobe.errors import LoraprobeError
from loraprobe.pipeline.provenance import BaseRecord, SourceRecord
from loraprobe.records import Check

CONFIG = "adapter_config.json"
LOOKED_AT = 500  # directories whose names are read
HASHED = 100  # adapters whose weights are hashed


@dataclass
class SourceFinder:
    """Finds sources; it keeps the adapters that it read, so that each file is hashed once.

    place: the verified directory, which is not searched itself. given: the user's references.
    """

    place: Path
    given: Sequence[str] = ()
    known: dict[Path, Adapter | None] = field(default_factory=dict)

    def adapter(self, record: SourceRecord) -> tuple[Adapter | None, Check]:
        """The source that the card records, or None, and the check of its sha256."""
        label = f"source {record.name}"
        try:
            found = self._found(record)
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

    def _found(self, record: SourceRecord) -> Adapter | None:
        """The adapter of that hash, else a changed one of that name, else None."""
        from loraprobe import hub

        if record.commit:
            return hub.load(_pinned(record.reference, record.commit))
        named = [hub.load(reference) for reference in self.given]
        same_name: Adapter | None = None
        for adapter in (*named, *self._nearby(record.reference)):
            if adapter.sha256 == record.sha256:
                return adapter
            if same_name is None and adapter.source.public == record.reference:
                same_name = adapter
        return same_name

    def _nearby(self, name: str) -> Iterator[Adapter]:
        """Adapters of nearby directories, those of this name first."""
        every = list(islice(_directories(self.place), LOOKED_AT))
        ordered = sorted(every, key=lambda place: place.name != name)
        for place in ordered:
            if place not in self.known and len(self.known) < HASHED:
                self.known[place] = self._read(place)
            if adapter := self.known.get(place):
                yield adapter

    def _read(self, place: Path) -> Adapter | None:
        from loraprobe import hub

        own = self.place.resolve()
        if own in (place.resolve(), *place.resolve().parents):
            return None
        try:
            return hub.load(place) if (place / CONFIG).is_file() else None
        except (LoraprobeError, OSError):
            return None

    def base(self, record: BaseRecord, given: str | None) -> tuple[Base | None, Check]:
        """The base that the card records: `given`, else its commit, else a nearby directory."""
        from loraprobe.pipeline.inputs import base_of

        found: Base | None
        try:
            if given is not None or record.commit is not None:
                found = base_of(given or _pinned(record.reference, record.commit or ""), ())
            else:
                nearby = islice(_directories(self.place), LOOKED_AT)
                named = (_base(place) for place in nearby if place.name == record.reference)
                found = next(filter(None, named), None)
        except LoraprobeError as error:
            return None, Check("base", False, str(error))
        if found is None:
            message = f"No base model {record.reference} was found here; give --base DIR."
            return None, Check("base", False, message)
        if record.sha256 and found.sha256 != record.sha256:
            message = f"{record.reference} has other weights than the base that was used."
            return None, Check("base", False, message)
        weights = (
            f"sha256 {found.sha256[:12]}..." if record.sha256 else "its weights were not hashed"
        )
        return replace(found, reference=record.reference, commit=record.commit), Check(
            "base", True, f"{record.reference}: {record.commit or weights}"
        )


def _base(place: Path) -> Base | None:
    from loraprobe.base import open_base

    try:
        return open_base(place)
    except LoraprobeError:
        return None


def _directories(place: Path) -> Iterator[Path]:
    """Siblings of the place, the current directory, their children, and siblings of parents."""
    roots, seen = [place.resolve().parent, Path.cwd()], set()
    nearest = [child for root in roots for child in _children(root)]
    around_parents = (child for root in roots for child in _children(root.parent))
    for found in (*roots, *nearest, *_each(nearest), *around_parents):
        if found not in seen:
            seen.add(found)
            yield found


def _each(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders[:LOOKED_AT]:
        yield from _children(folder)


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
