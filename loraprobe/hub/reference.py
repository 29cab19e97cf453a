"""Parses the references of adapters and bases, without access to the network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from loraprobe.adapters import Adapter, Source
from loraprobe.adapters.config import CONFIG
from loraprobe.adapters.names import local_name
from loraprobe.defaults import DEFAULT_METHODS, DEFAULT_ROUTERS
from loraprobe.errors import BadReference, UsageError
from loraprobe.records import FIXED

NAMED = re.compile(r"(?P<name>[\w.+-]+)=(?P<rest>.+)", re.DOTALL)
ON_HUB = re.compile(
    r"(?P<repo>(?:[\w.-]{1,96}/)?[\w.-]{1,96})(?:@(?P<revision>[^:@]+))?(?::(?P<folder>.*))?",
    re.ASCII,
)
LOCAL_START = (".", "/", "~", "\\")
# Results are stored by name: no adapter has that of a fixed system, or of a default composition.
SYSTEMS = frozenset({*FIXED, *DEFAULT_METHODS, *DEFAULT_ROUTERS})


@dataclass(frozen=True)
class Reference:
    """A parsed reference, such as `math=owner/name@v2:lora/math` or `./out/adapter`.

    `text` is the input without its NAME=. A Hub reference has `repo`, `revision` and
    `folder`; a local one has `path`. `kind` is what the repository holds, as the Hub's client calls
    it.
    """

    text: str
    name: str | None = None
    path: Path | None = None
    repo: str = ""
    revision: str | None = None
    folder: str = ""
    kind: Literal["model", "dataset"] = "model"

    @classmethod
    def parse(cls, text: str, *, bare: bool = False) -> Reference:
        """Parses [NAME=]directory or [NAME=]owner/name[@revision][:sub/folder].

        A directory that exists is preferred; its adapter_config.json stands for it. bare: the
        reference of a base, which may be a repository without an owner, such as gpt2. Raises
        BadReference for another text and UsageError for a reserved name.
        """
        named = None if _exists(text) else NAMED.fullmatch(text)
        name, rest = (named["name"], named["rest"]) if named else (None, text)
        if name is not None and not name.strip("."):
            raise UsageError(
                f"An adapter cannot be named {name!r}, which is a path; choose another name."
            )
        if name in SYSTEMS:
            raise UsageError(
                f"An adapter cannot be named {name!r}, which is another system's name in the "
                "results; choose another name."
            )
        if _exists(rest) == "file" and Path(rest).name == CONFIG:
            rest = str(Path(rest).parent)
        if _exists(rest) == "directory":
            return cls(rest, name, path=Path(rest).expanduser())
        if _exists(rest):
            raise BadReference(f"{rest} is a file; give the directory that it lies in.")
        if not rest or rest.startswith(LOCAL_START):
            raise BadReference(f"There is no directory {rest!r}; check the path.")
        match = ON_HUB.fullmatch(rest)
        if not match or not (bare or "/" in match["repo"]):
            raise BadReference(
                f"There is no directory {rest!r}, and it is no Hub reference either, which is "
                "owner/name, owner/name@revision or owner/name@revision:sub/folder."
            )
        folder = match["folder"] or ""
        parts = PurePosixPath(folder).parts
        if ".." in parts or folder.startswith("/") or "\\" in folder:
            raise BadReference(f"The sub-folder of {rest!r} must lie inside its repository.")
        inside = "/".join(part for part in parts if part != ".")
        return cls(rest, name, None, match["repo"], match["revision"], inside)

    def inside(self, name: str) -> str:
        """The name in the repository of a file in the reference's folder."""
        return f"{self.folder}/{name}" if self.folder else name

    @property
    def short(self) -> str:
        """The given name, else the last part of the path as it was typed."""
        if self.name:
            return self.name
        if self.path is not None:
            return local_name(str(self.path))
        return PurePosixPath(self.folder or self.repo).name


def by_parents(names: Sequence[str], places: Sequence[Path | None]) -> list[str]:
    """Names of folders, where several are called the same by the nearest folders above that differ.

    places: of a name that stays None. A user's home gives nothing its name.
    """
    renamed, alike = list(names), dict[str, list[int]]()
    for at, (name, place) in enumerate(zip(names, places, strict=True)):
        if place is not None:
            alike.setdefault(name, []).append(at)
    for group in alike.values():
        folders = [place for at in group if (place := places[at]) is not None]
        for above in zip(*map(_names_above, folders), strict=False):
            if 1 < len(set(folders)) == len(set(above)):
                for at, name in zip(group, above, strict=True):
                    renamed[at] = name
                break
    return renamed


def _names_above(place: Path) -> Iterator[str]:
    """The names of the folders above one as it was typed, the nearest first, that may be names."""
    for folder in place.parents:
        if not NAMED.fullmatch(f"{folder.name}=x") or not folder.name.strip("."):
            return
        if folder.parent == Path.home().parent:
            return
        yield folder.name


def unique_names(wanted: list[tuple[str, bool]]) -> list[str]:
    """Makes names unique by -2, -3 ...; wanted: (name, whether the user chose it).

    Chosen names stay as they are. Raises UsageError if two chosen names are equal.
    """
    chosen = [name for name, is_chosen in wanted if is_chosen]
    twice = sorted({name for name in chosen if chosen.count(name) > 1})
    if twice:
        raise UsageError(f"Two adapters are named {twice[0]!r}; give each its own NAME=.")
    taken = SYSTEMS.union(chosen)
    names = []
    for name, is_chosen in wanted:
        candidate, number = name, 2
        while not is_chosen and candidate in taken:
            candidate, number = f"{name}-{number}", number + 1
        taken = taken | {candidate}
        names.append(candidate)
    return names


def _exists(text: str) -> Literal["directory", "file"] | None:
    """Whether a text is the path of a directory or of a file on this machine."""
    if not text:  # Path("") would be the current directory
        return None
    try:
        path = Path(text).expanduser()
        return "directory" if path.is_dir() else "file" if path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, no such user, a null byte
        return None


def reference_of(adapter: Adapter, place: Callable[[Source], str] = lambda s: s.public) -> str:
    """A reference as on a command line, with NAME= unless the reference implies the name.

    place: the words for a source.
    """
    where = place(adapter.source)
    return where if local_name(where) == adapter.name else f"{adapter.name}={where}"
