"""Loads the adapters of references, each with those that were in its base when it was trained.

These are named by the reference (`REF,on=OTHER`), else by the files of the adapter (`stacks`), and
they hold the adapters below themselves (`Adapter.below`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from loraprobe.adapters import Adapter, Source, local_name, read_adapter, stacked
from loraprobe.adapters.stack import changed_together, same
from loraprobe.errors import AdapterError, HubError, LoraprobeError, ReferenceError_
from loraprobe.findings import finding
from loraprobe.formatting import listing
from loraprobe.hub.reference import PLAIN, Reference, unique_names
from loraprobe.hub.snapshots import resolve_adapter
from loraprobe.hub.stacks import Said, continues, said_below
from loraprobe.records import Severity


def load(ref: str | Path, on: str | Path | Adapter | None = None) -> Adapter:
    """Loads the adapter of a reference. Factors are read from the file when needed.

    on: the adapter that was in the base when it was trained, or "base" for none; None for what the
    reference or the files say. Raises ReferenceError_, HubError, AdapterError or
    CompatibilityError.
    """
    reference = Reference.parse(str(ref))
    if isinstance(on, Adapter):
        return stacked(_read(reference), [on])
    if on is not None:
        reference = replace(reference, on=PLAIN if on == PLAIN else Reference.parse(str(on)))
    return _load(reference)


def _read(reference: Reference) -> Adapter:
    """The adapter of a reference, without those below it."""
    found = resolve_adapter(reference)
    source = Source(found.reference, found.path, found.commit, reference.on == PLAIN)
    return read_adapter(found.path, reference.short, source)


def _load(reference: Reference, above: tuple[Adapter, ...] = (), guessed: bool = False) -> Adapter:
    """Loads an adapter and those below it.

    above: the adapters that stand on it. guessed: whether one of these only may do so.
    """
    adapter = _read(reference)
    above = (*above, adapter)
    if any(_place(adapter) == _place(one) for one in above[:-1]):
        circle = listing(one.name for one in above)
        raise AdapterError(
            f"{above[0].name} would stand on itself ({circle}, each on the next); name what it was "
            "trained on, or write REF,on=base."
        )
    if isinstance(reference.on, Reference):
        return stacked(adapter, [_load(reference.on, above)])
    said = None if reference.on == PLAIN else said_below(adapter)
    return adapter if said is None else _on_said(said, above, guessed)


def _on_said(said: Said, above: tuple[Adapter, ...], guessed: bool) -> Adapter:
    """The last of the adapters `above`, on those that its files say were in its base.

    One that is named and not found is an issue. A guess ends in no error: what cannot be read or
    does not fit, itself or what it stands on, is left out with a note.
    """
    adapter, guess = above[-1], said.guess

    def told(code: str, message: str, severity: Severity | None = None) -> Adapter:
        text = f"{adapter.name} {message}, as {said.file} says."
        note = finding(code, (adapter.name,), text, severity=severity)
        return replace(adapter, issues=(*adapter.issues, note))

    lower: list[Adapter] = []
    try:
        for name in said.names:
            reference = Reference.parse(name)
            if reference.path is not None and reference.path.resolve() == _place(adapter):
                continue  # it was saved where its base was
            one = _load(reference, above, guessed or guess)
            if guess and same(adapter, one):
                continue  # a copy of it
            if guess and continues(adapter, one):
                return told("continued-adapter", f"continues the training of {one.name}")
            if guess and any(issue.severity == "error" for issue in one.issues):
                raise AdapterError(f"{one.name} has errors.")
            lower.append(one)
        return stacked(adapter, lower) if lower else adapter
    except LoraprobeError as error:
        if guess and not guessed:
            message = (
                f"may have been trained on {name} (left out: it cannot be read, does not fit, or "
                f"names {adapter.name} itself)"
            )
            return told("on-adapter-missing", message, "note")
        if guessed or not isinstance(error, (ReferenceError_, HubError)):
            raise
        return told("on-adapter-missing", f"was trained on {name}, which is not found")


def _place(adapter: Adapter) -> Path | None:
    path = adapter.source.path
    return None if path is None else path.resolve()


def load_all(refs: Sequence[str | Path | Adapter] | str | Path | Adapter) -> list[Adapter]:
    """Loads one or several adapters in their order, with unique names, also of those below them.

    Adapter objects are accepted too. Names chosen by the user (NAME=REF) stay; others get -2,
    -3 ... if they collide. Raises as `load`; wrong references are told before anything is loaded.
    """
    if isinstance(refs, (str, Path, Adapter)):
        refs = [refs]
    for ref in refs:
        if not isinstance(ref, Adapter):
            Reference.parse(str(ref))
    adapters = []
    for _, _, found in load_each(refs):
        if isinstance(found, LoraprobeError):
            raise found
        adapters.append(found)

    def named(every: list[Adapter]) -> list[Adapter]:
        names = unique_names([(one.name, at < len(adapters)) for at, one in enumerate(every)])
        return [one.renamed(name) for one, name in zip(every, names, strict=True)]

    return changed_together(adapters, named)


def load_each(
    refs: Sequence[str | Path | Adapter],
) -> Iterator[tuple[str, str, Adapter | LoraprobeError]]:
    """Loads adapters one after the other: (unique name, public reference, adapter or its error).

    Raises UsageError for a name that cannot be given, before anything is loaded.
    """
    told = [_told(ref) for ref in refs]
    names = unique_names([(name, is_chosen) for name, is_chosen, _ in told])
    for ref, name, (_, _, public) in zip(refs, names, told, strict=True):
        try:
            adapter = ref if isinstance(ref, Adapter) else load(ref)
        except LoraprobeError as error:
            yield name, public, error
        else:
            yield name, adapter.source.public, adapter.renamed(name)


def _told(ref: str | Path | Adapter) -> tuple[str, bool, str]:
    """The name of an adapter, whether the user chose it, and its reference as it may be published.

    Raises UsageError for a name that cannot be given.
    """
    if isinstance(ref, Adapter):
        return ref.name, False, ref.source.public
    try:
        parsed = Reference.parse(str(ref))
    except ReferenceError_:
        return local_name(str(ref)), False, local_name(str(ref))
    public = parsed.text if parsed.path is None else local_name(parsed.text)
    return parsed.short, parsed.name is not None, public
