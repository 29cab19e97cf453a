"""References -> the adapters of a library, each read once, with a sketch of each.

A few modules of one adapter are in memory at a time. An adapter that cannot be read or used becomes
`broken`, with the reason and its cure among its issues; it never ends the run.

What was read is stored in the cache under the hashes of what it follows from, so that a second run
reads no tensor again. Each reading is a small JSON file of its own, written whole, so that any
number of runs may share them, and an interrupted run loses at most the adapter it was reading. What
cannot be stored is read again next time.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from loraprobe import hub
from loraprobe._version import __version__
from loraprobe.adapters import Adapter, local_name, public_name, read_adapter
from loraprobe.cache import READINGS, keep, read_kept
from loraprobe.compatibility import TensorChecks, content_issues
from loraprobe.errors import AdapterError, LoraprobeError, UsageError
from loraprobe.extensions.screen.records import LibraryAdapter
from loraprobe.extensions.screen.sketches import NUMBERS, SketchBuilder
from loraprobe.lora.grams import gram_matrices
from loraprobe.records import Issue, Progress
from loraprobe.secrets import map_texts, public_text
from loraprobe.untrusted import is_endless


@dataclass(frozen=True, eq=False)
class Member:
    """One adapter of a library: its record, and what was read of it if it is not broken.

    `key` names the stored reading. `open()` opens the adapter anew each time; its tensors are read
    when they are needed, so that a library of a thousand takes no memory for them.
    """

    record: LibraryAdapter
    open: Callable[[], Adapter]
    key: str = ""
    reading: Reading | None = None

    @property
    def usable(self) -> bool:
        """Whether it can be read, fits the others and is no duplicate of one."""
        return self.record.state == "usable"

    def changed(self, *issues: Issue, **fields: Any) -> Member:
        """The member with further issues and other fields of its record."""
        held = tuple(dict.fromkeys((*self.record.issues, *issues)))
        return replace(self, record=replace(self.record, issues=held, **fields))


ONE_A_LINE = "write one reference a line"


def expand_references(
    references: Sequence[Adapter | str | Path], stdin: TextIO | None = None
) -> list[Adapter | str | Path]:
    """The references with those of every `@FILE`, and of `-` (standard input), in their place.

    A file holds one reference a line, which may be NAME=REF; blank lines and what follows a # at
    the start of a line or after a space are left out. Raises UsageError for a file that cannot be
    read or holds no reference.
    """
    given: list[Adapter | str | Path] = []
    for reference in references:
        if isinstance(reference, str) and reference == "-":
            if stdin is None or stdin.isatty():
                raise UsageError(
                    "- stands for references on standard input; give some there, as loraprobe find "
                    "BASE does in a pipe."
                )
            given += _references(stdin.read, "Standard input")
        elif isinstance(reference, str) and reference.startswith("@"):
            file = Path(reference.removeprefix("@")).expanduser()
            if is_endless(file):
                raise UsageError(
                    f"{reference} is a pipe or a device; give a file, or - for a pipe."
                )
            given += _references(partial(file.read_text, encoding="utf-8-sig"), reference)
        else:
            given.append(reference)
    if not given:
        raise UsageError("No adapter was given; give at least one.")
    return given


def _references(read: Callable[[], str], name: str) -> list[str]:
    """The references in a text. name: what is read, for errors."""
    try:
        lines = map(str.strip, read().splitlines())
    except UnicodeDecodeError:
        raise UsageError(f"{name} is no text in UTF-8; {ONE_A_LINE}.") from None
    except OSError as error:
        raise UsageError(f"{name} cannot be read ({error.strerror}); check the path.") from None
    texts = (line.partition(" #")[0].strip() for line in lines if not line.startswith("#"))
    references = list(filter(None, texts))
    if not references:
        raise UsageError(f"{name} holds no reference; {ONE_A_LINE}.")
    return references


def read_library(
    references: Sequence[Adapter | str | Path],
    *,
    allow: Collection[str] = (),
    progress: Progress | None = None,
) -> list[Member]:
    """Reads every adapter once, in order, and names what cannot be used.

    allow: codes of issues that do not make an adapter `broken`. Raises UsageError for a name
    that cannot be given.
    """
    members = list[Member]()
    for given, (name, reference, found) in zip(references, hub.load_each(references), strict=True):
        try:
            if isinstance(found, LoraprobeError):
                raise found
            members.append(_read(found, allow))
        except (LoraprobeError, OSError) as error:
            typed = given.source.reference if isinstance(given, Adapter) else str(given)
            members.append(_unread(name, reference, error, typed))
        if progress is not None:
            progress("read", len(members), len(references))
    return members


def _unread(name: str, reference: str, error: LoraprobeError | OSError, given: str) -> Member:
    """The member for an adapter that cannot be opened or read. given: its reference as typed."""
    if isinstance(error, OSError):
        error = AdapterError(f"{name} cannot be read ({error.strerror}).")
    failure = error  # a name that is not deleted after the clause

    def again() -> Adapter:
        raise failure

    path = given.rpartition("=")[2]
    # A relative path names neither the user nor the machine, and tells which one is missing.
    private = {path: reference} if os.path.isabs(os.path.expanduser(path)) else {}
    issue = map_texts(issue_of(error, name), _public(private))
    record = LibraryAdapter(
        name, reference, None, "", None, None, 0, 0, None, state="broken", issues=(issue,)
    )
    return Member(record, again)


def issue_of(error: LoraprobeError, name: str) -> Issue:
    """An error of one adapter as a finding: what is wrong, and the cure apart from it."""
    problem, cure = error.problem.rstrip("."), error.cure.rstrip(".")
    if not cure.startswith("loraprobe "):  # a command
        cure = f"{cure[:1].upper()}{cure[1:]}"
    return Issue("error", error.code, (name,), f"{problem}.", f"{cure}.")


def _read(adapter: Adapter, allow: Collection[str]) -> Member:
    """One adapter that was opened, from its stored reading or else from its tensors.

    It is opened again where it is needed; an adapter in memory is its own. Raises LoraprobeError or
    OSError.
    """
    file, path, source = adapter.weights_file, adapter.source.path, adapter.source
    parts = (__version__, adapter.sha256, dict(adapter.config))
    text = json.dumps(parts, sort_keys=True, default=str)
    key = hashlib.sha256(text.encode()).hexdigest()
    reading = Reading.stored(key)
    if reading is None:
        reading = Reading.of(adapter)
        reading.store(key)
    issues = tuple(
        replace(issue, severity="warning")
        if issue.code in allow and issue.severity == "error"
        else issue
        for issue in (*adapter.issues, *reading.issues(adapter))
    )
    broken = any(issue.severity == "error" for issue in issues)
    private = {source.reference: source.public}
    private |= {} if path is None else {str(path): local_name(str(path))}
    low, high = adapter.rank_range
    record = LibraryAdapter(
        name=adapter.name,
        reference=source.public,
        commit=source.commit,
        sha256=adapter.sha256,
        base_model=public_name(adapter.base_model),
        rank={"min": low, "max": high},
        modules=len(adapter.layout),
        parameters=adapter.parameters,
        norm=None if reading.not_finite else reading.norm,
        state="broken" if broken else "usable",
        issues=map_texts(issues, _public(private)),
    )
    opened = lambda: adapter  # noqa: E731
    if file is not None and path is not None:
        opened = partial(read_adapter, path, adapter.name, source)
    return Member(record, opened, key, None if broken else reading)


def _public(names: Mapping[str, str]) -> Callable[[str], str]:
    """What makes a text public; names: private path -> the name that stands for it."""
    private = {path: name for path, name in names.items() if "/" in path or "\\" in path}
    return lambda text: public_text(text, private)


class _Stored(BaseModel):
    """A `Reading` as its file holds it."""

    model_config = ConfigDict(strict=True, extra="forbid")

    norm: float
    not_finite: list[str]
    without_effect: list[str]
    largest: tuple[float, str]
    numbers: str | None
    error: float


@dataclass(frozen=True, eq=False)
class Reading:
    """What one pass over the tensors of an adapter found.

    not_finite and without_effect are paths of modules; `largest` is the norm of the largest delta
    with its path, `norm` that of all together. `numbers` [NUMBERS] in float16 are its sketch, None
    where it has none; `error` is the standard error of a sketched cosine.
    """

    norm: float
    not_finite: list[str]
    without_effect: list[str]
    largest: tuple[float, str]
    numbers: NDArray[np.float16] | None
    error: float

    @classmethod
    def of(cls, adapter: Adapter) -> Reading:
        """Reads the tensors of an adapter, a few modules at a time."""
        checks, builder = TensorChecks([adapter]), SketchBuilder()
        for joint in gram_matrices([adapter.modules], visitor=builder.visit):
            checks.take(joint)
            builder.take(joint)
        norm = float(checks.inner[0, 0].clamp_min(0).sqrt())
        own = norm, checks.not_finite[0], checks.without_effect[0], checks.largest[0]
        return cls(*own, *builder.made())

    @classmethod
    def stored(cls, key: str) -> Reading | None:
        """The stored reading of that key; None if there is none or it is damaged."""
        try:
            held = _Stored.model_validate_json(read_kept(READINGS, f"{key}.json") or b"")
            numbers = None
            if held.numbers is not None:
                data = base64.b64decode(held.numbers, validate=True)
                numbers = np.frombuffer(data, dtype="<f2").astype(np.float16, copy=False)
                if len(numbers) != NUMBERS or not np.isfinite(numbers).all():
                    return None
            return cls(**dict(held) | {"numbers": numbers})
        except ValueError:  # also a type that is wrong
            return None

    def store(self, key: str) -> None:
        """Stores it as JSON, with the numbers of the sketch as base64 of float16.

        It is stored whole or not at all; a cache that cannot be written is no error.
        """
        numbers = None
        if self.numbers is not None:
            numbers = base64.b64encode(self.numbers.astype("<f2").tobytes()).decode()
        text = json.dumps(vars(self) | {"numbers": numbers})
        keep(READINGS, f"{key}.json", text.encode())

    def issues(self, adapter: Adapter) -> Sequence[Issue]:
        """What the tensors of the adapter are, as findings."""
        checks = TensorChecks([adapter])
        checks.not_finite, checks.without_effect = [self.not_finite], [self.without_effect]
        checks.largest = [self.largest]
        return list(content_issues(checks))
