"""The answer about a library without a task: what can be used, what not and why, what is next."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from loraprobe.compatibility import CODES
from loraprobe.formatting import count, first_names
from loraprobe.records import Library, LibraryAdapter, Provenance
from loraprobe.report.formatting import number
from loraprobe.verdict.next_command import TASK, library_words

Line = tuple[str, str]
MOST_NAMES = 3


def headline(library: Library) -> str:
    """How many adapters can be used."""
    usable = sum(row.state == "usable" for row in library.adapters)
    total = count(len(library.adapters), "adapter")
    if usable == len(library.adapters):
        return f"LIBRARY: all of {total} can be used." if usable > 1 else f"LIBRARY: {total}."
    return f"LIBRARY: {usable} of {total} can be used."


def labelled(library: Library, provenance: Provenance) -> Iterator[Line]:
    """The lines below the headline."""
    rows = library.adapters
    for state in ("broken", "unfit"):
        yield state, _by_reason([row for row in rows if row.state == state])
    yield "copies", _copies(rows)
    yield "families", _families(rows)
    yield "outliers", _outliers(rows)
    references = library_words(rows, provenance.arguments)
    yield "next", shlex.join(["loraprobe", "screen", *references, "--task", TASK])


def one_line(library: Library) -> str:
    """How many adapters can be used, for --quiet."""
    usable = sum(row.state == "usable" for row in library.adapters)
    return f"{usable} of {len(library.adapters)} usable"


def _by_reason(rows: Sequence[LibraryAdapter]) -> str:
    """Adapters by the meaning of the first finding that excludes them."""
    found: dict[str, list[str]] = {}
    for row in rows:
        code = next((i.code for i in row.issues if i.severity == "error"), "")
        found.setdefault(CODES.get(code, code), []).append(row.name)
    told = [f"{first_names(names, MOST_NAMES)} ({why})" for why, names in found.items()]
    return f"{len(rows)}: {'; '.join(told)}" if told else ""


def _copies(rows: Sequence[LibraryAdapter]) -> str:
    equal = [f"{row.name} = {row.same_as}" for row in rows if row.state == "duplicate"]
    others = [row for row in rows if row.same_as is not None and row.state != "duplicate"]
    scaled = [f"{row.name} of {row.same_as}" for row in others]
    told = [f"{len(equal)} left out ({first_names(equal, MOST_NAMES)})"] if equal else []
    told += [f"{len(scaled)} only scaled ({first_names(scaled, MOST_NAMES)})"] if scaled else []
    return "; ".join(told)


def _families(rows: Sequence[LibraryAdapter]) -> str:
    held = [row for row in rows if row.place is not None]
    sizes: dict[int, int] = {}
    for row in held:
        if row.family is not None:
            sizes[row.family] = sizes.get(row.family, 0) + 1
    if len(held) < 2:
        return ""
    alone = len(held) - sum(sizes.values())
    if not sizes:
        return f"none: all {len(held)} point in different directions"
    least, most = min(sizes.values()), max(sizes.values())
    spread = f"{least}" if least == most else f"{least} to {most}"
    groups = f"{len(sizes)} of {spread} adapters that point the same way"
    return f"{groups}; {alone} stand alone" if alone else groups


def _outliers(rows: Sequence[LibraryAdapter]) -> str:
    found = [f"{row.name} ({number(row.norm)})" for row in rows if row.outlier]
    return f"{len(found)} of extreme norm: {first_names(found, MOST_NAMES)}" if found else ""
