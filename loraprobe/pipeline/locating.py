"""The sources of a merge or a composition found again: by commit on the Hub, else by sha256.

A source that was a directory is known by its name and the sha256 of its weights, not by a path.
It is looked for among what the user names, then near the directory that is verified and near the
current one: directories of its name first, then all others, up to a bound.
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
    """Where sources are looked for; hashes and findings are kept, so that each file is read once.

    place: the directory that is verified, which is no source of itself. given: references that the
    user named.
    """

    place: Path
    given: Sequence[str] = ()
    known: dict[Path, Adapter | None] = field(default_factory=dict)

    def adapter(self, told: SourceRecord) -> tuple[Adapter | None, Check]:
        """The source under its name in the card, and whether it is the one that was used."""
        label = f"source {told.name}"
        try:
            found = self._found(told)
        except LoraprobeError as error:
            return None, Check(label, False, str(error))
        if found is None:
            message = (
                f"No adapter with the weights {told.sha256[:12]}... was found here; it was "
                f"called {told.reference}. Name where it is: loraprobe verify DIR REF."
            )
            return None, Check(label, False, message)
        message = f"{told.reference}: sha256 {found.sha256[:12]}..."
        if found.sha256 != told.sha256:
            message += f", but it was made of {told.sha256[:12]}...; the source changed."
            return None, Check(label, False, message)
        source = Source(told.reference, found.source.path, told.commit)
        return replace(found.renamed(told.name), source=source), Check(label, True, message)

    def _found(self, told: SourceRecord) -> Adapter | None:
        """The adapter of that hash; else one of that name, which has changed; else None."""
        from loraprobe import hub

        if told.commit:
            return hub.load(_pinned(told.reference, told.commit))
        named = [hub.load(reference) for reference in self.given]
        same_name: Adapter | None = None
        for adapter in (*named, *self._near(told.reference)):
            if adapter.sha256 == told.sha256:
                return adapter
            if same_name is None and adapter.source.public == told.reference:
                same_name = adapter
        return same_name

    def _near(self, name: str) -> Iterator[Adapter]:
        """Adapters of directories near, those of this name first."""
        every = list(islice(_directories(self.place), LOOKED_AT))
        ordered = sorted(every, key=lambda place: place.name != name)
        for place in ordered:
            if place not in self.known and len(self.known) < HASHED:
                self.known[place] = self._read(place)
            if adapter := self.known.get(place):
                yield adapter

    def _read(self, place: Path) -> Adapter | None:
        from loraprobe import hub

        here = place.resolve()
        if here == self.place.resolve() or self.place.resolve() in here.parents:
            return None
        try:
            return hub.load(place) if (place / CONFIG).is_file() else None
        except (LoraprobeError, OSError):
            return None

    def base(self, told: BaseRecord, given: str | None) -> tuple[Base | None, Check]:
        """The base that the card names: `given`, else at its commit, else a directory near."""
        from loraprobe.pipeline.inputs import base_of

        found: Base | None
        try:
            if given is not None or told.commit is not None:
                found = base_of(given or _pinned(told.reference, told.commit or ""), ())
            else:
                near = islice(_directories(self.place), LOOKED_AT)
                named = (_base(place) for place in near if place.name == told.reference)
                found = next(filter(None, named), None)
        except LoraprobeError as error:
            return None, Check("base", False, str(error))
        if found is None:
            message = f"No base model {told.reference} was found here; give --base DIR."
            return None, Check("base", False, message)
        if told.sha256 and found.sha256 != told.sha256:
            message = f"{told.reference} has other weights than the base that was used."
            return None, Check("base", False, message)
        said = f"sha256 {found.sha256[:12]}..." if told.sha256 else "its weights were not hashed"
        return replace(found, reference=told.reference, commit=told.commit), Check(
            "base", True, f"{told.reference}: {told.commit or said}"
        )


def _base(place: Path) -> Base | None:
    from loraprobe.base import open_base

    try:
        return open_base(place)
    except LoraprobeError:
        return None


def _directories(place: Path) -> Iterator[Path]:
    """Directories beside one, beside the current one, in these, and beside their parents."""
    here, seen = [place.resolve().parent, Path.cwd()], set()
    nearest = [child for root in here for child in _children(root)]
    beside_parents = (child for root in here for child in _children(root.parent))
    for found in (*here, *nearest, *_each(nearest), *beside_parents):
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
