"""Resolves references to adapters and base models: local directories, or a commit on the Hub.

Only the needed files are downloaded: config and weights of an adapter; config, tokenizer and
weights in one format of a base. HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE apply. Every
failure raises a LoraprobeError with one sentence; functions name its classes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from loraprobe.adapters import Adapter, Source, below, local_name, read_adapter, stacked
from loraprobe.adapters.config import CONFIG
from loraprobe.adapters.reading import PICKLE, SAFETENSORS, find_directory
from loraprobe.adapters.stack import changed_together, same
from loraprobe.checkpoint import BESIDE_WEIGHTS, weight_names
from loraprobe.errors import (
    AdapterError,
    BaseError,
    CompatibilityError,
    HubError,
    LoraprobeError,
    ReferenceError_,
)
from loraprobe.findings import finding
from loraprobe.formatting import listing
from loraprobe.hub import stacks
from loraprobe.hub.reference import DATASET, PLAIN, Reference, reference_of, unique_names
from loraprobe.hub.repository import (
    Snapshot,
    beside,
    cached,
    check_push,
    fetch,
    fetch_first,
    model_card,
    push,
    read_card,
    summary,
)
from loraprobe.hub.search import find_adapters, one_base
from loraprobe.records import Severity

MISSING, CONTINUED = "on-adapter-missing", "continued-adapter"


class _Circle(AdapterError):
    """An adapter that would stand on itself."""


def load(ref: str | Path, on: str | Path | Adapter | None = None) -> Adapter:
    """Loads the adapter of a reference. Factors are read from the file when needed.

    on: the adapter that was in the base when it was trained, or "base" for none; None for what the
    reference or the files say. Raises ReferenceError_, HubError, AdapterError or
    CompatibilityError.
    """
    reference = Reference.parse(str(ref))
    if on is None:
        return _load(reference)
    alone = _load(replace(reference, on=None, plain=True))
    if on == PLAIN:
        return alone
    lower = on if isinstance(on, Adapter) else _load(Reference.parse(str(on)))
    return stacked(replace(alone, source=replace(alone.source, plain=False)), [lower])


def _load(
    reference: Reference,
    above: tuple[Adapter, ...] = (),
    *,
    ask: bool = False,
    fetched: bool = True,
    guessed: bool = False,
) -> Adapter:
    """Loads an adapter and those below it.

    above: those that stand on it. ask: whether the Hub may be asked about those below. fetched:
    whether it may be asked about the adapter itself. guessed: whether only a card names it.
    """
    snapshot = resolve_adapter(reference, fetched)
    source = Source(snapshot.reference, snapshot.path, snapshot.commit, reference.plain)
    adapter = read_adapter(snapshot.path, reference.short, source)
    if any(_place(adapter) == _place(one) for one in above):
        circle = listing(one.name for one in (*above, adapter))
        raise _Circle(
            f"{above[0].name} would stand on itself ({circle}, each on the next); name what it was "
            "trained on, or write REF,on=base."
        )
    if reference.on is not None:
        return stacked(adapter, [_load(reference.on, (*above, adapter), ask=ask, fetched=fetched)])
    return _on_found(adapter, above, ask, guessed)


def _place(adapter: Adapter) -> Path | None:
    path = adapter.source.path
    return None if path is None else path.resolve()


def _on_found(
    adapter: Adapter, above: tuple[Adapter, ...] = (), ask: bool = True, guessed: bool = False
) -> Adapter:
    """The adapter on those that its files say were in its base; itself if they name none.

    An adapter that is named and not found is an issue, until the Hub is asked. What a card names is
    a guess, which never ends in an error: it is left out with a note. The arguments are `_load`'s.
    """
    if adapter.source.plain or adapter.below or adapter.source.path is None:
        return adapter
    kept = tuple(i for i in adapter.issues if i.code not in (MISSING, CONTINUED))
    adapter = replace(adapter, issues=kept)
    names, where = stacks.merged_before(adapter, ask), f"its {stacks.TRAINING}"
    far = ask and (bool(names) or adapter.source.commit is not None)
    if not names and (name := stacks.named_as_base(adapter, far)):
        names, where = [name], "its config"
    guess = not names
    if guess and (name := stacks.named_in_card(adapter, far)):
        names, where = [name], "its card"

    def told(code: str, message: str, severity: Severity | None = None) -> Adapter:
        text = f"{adapter.name} {message}, as {where} says."
        note = finding(code, (adapter.name,), text, severity=severity)
        return replace(adapter, issues=(*kept, note))

    lower: list[Adapter] = []
    try:
        for name in names:
            reference = Reference.parse(name)
            if reference.path is not None and reference.path.resolve() == _place(adapter):
                continue  # it was saved where its base was
            one = _load(reference, (*above, adapter), ask=ask, fetched=far, guessed=guess)
            if guess and same(adapter, one):
                continue  # a copy of it
            if guess and stacks.continues(adapter, one):
                return told(CONTINUED, f"continues the training of {one.name}")
            if guess and any(issue.severity == "error" for issue in one.issues):
                raise AdapterError(f"{one.name} has errors.")
            lower.append(one)
        return stacked(adapter, lower) if lower else adapter
    except LoraprobeError as error:
        # In a circle of guesses none counts: the first of them leaves it.
        if guess and not (guessed and isinstance(error, _Circle)):
            message = (
                f"may have been trained on {name} (left out: it cannot be read, does not fit, or "
                f"names {adapter.name} itself)"
            )
            return told(MISSING, message, "note")
        if isinstance(error, (ReferenceError_, HubError)):
            place = "not found" if far else "not on this machine"
            return told(MISSING, f"was trained on {name}, which is {place}")
        raise


def with_stacks(adapters: Sequence[Adapter]) -> list[Adapter]:
    """Adapters of one composition, with those below them; their files, also on the Hub, tell which.

    An adapter that is below another one of them is left out, since it is a part of that one. Those
    below get names of their own.
    """
    found = [
        _on_found(a) if a.source.commit or any(i.code == MISSING for i in a.issues) else a
        for a in adapters
    ]
    lower = below(found)
    twice = [one for one in found if any(same(one, other) for other in lower)]
    kept = []
    for adapter in (one for one in found if one not in twice):
        own = [one.name for one in twice if any(same(one, other) for other in adapter.below)]
        if own:
            message = (
                f"{listing(own)}, given too, counts once: as a part of {adapter.name}, at weight 1."
            )
            note = finding("on-adapter", (adapter.name,), message)
            adapter = replace(adapter, issues=(*adapter.issues, note))
        kept.append(adapter)

    def named(every: list[Adapter]) -> list[Adapter]:
        names = unique_names([(one.name, at < len(kept)) for at, one in enumerate(every)])
        return [one.renamed(name) for one, name in zip(every, names, strict=True)]

    return changed_together(kept, named) if lower else kept


def load_all(refs: Sequence[str | Path | Adapter] | str | Path | Adapter) -> list[Adapter]:
    """Loads one or several adapters in their order, with unique names.

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
    return adapters


def load_each(
    refs: Sequence[str | Path | Adapter],
) -> Iterator[tuple[str, str, Adapter | LoraprobeError]]:
    """Loads adapters one after the other: (unique name, public reference, adapter or its error).

    Raises UsageError for a name that cannot be given, before anything is loaded.
    """
    parsed: list[Adapter | Reference | ReferenceError_] = []
    wanted = []  # the name of each, and whether the user chose it
    for ref in refs:
        try:
            one = ref if isinstance(ref, Adapter) else Reference.parse(str(ref))
        except ReferenceError_ as error:
            wanted.append((local_name(str(ref)), False))
            parsed.append(error)
        else:
            chosen = isinstance(one, Reference) and one.name is not None
            wanted.append((one.name if isinstance(one, Adapter) else one.short, chosen))
            parsed.append(one)
    for ref, given, name in zip(refs, parsed, unique_names(wanted), strict=True):
        text = given.text if isinstance(given, Reference) else str(ref)
        try:
            if isinstance(given, ReferenceError_):
                raise given
            adapter = _load(given) if isinstance(given, Reference) else given
        except LoraprobeError as error:
            on_hub = isinstance(given, Reference) and given.path is None
            yield name, text if on_hub else local_name(text), error
        else:
            yield name, adapter.source.public, adapter.renamed(name)


def resolve_adapter(reference: Reference, ask: bool = True) -> Snapshot:
    """The folder with an adapter's files, which are downloaded if they are on the Hub.

    ask: whether the Hub may be asked; without it they have to be in the cache. Raises AdapterError
    or HubError if it holds no adapter.
    """
    if reference.path is not None:
        try:
            return Snapshot(find_directory(reference.path), reference.text)
        except AdapterError as error:
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", reference.text):
                raise
            hint = f"To mean the Hub's repository write {reference.text}@main."
            raise AdapterError(f"{error} {hint}") from None
    anchor = reference.inside(CONFIG)

    def choose(files: Collection[str], _: object) -> list[str]:
        if anchor not in files:
            raise HubError(_no_adapter(reference, files))
        for name in (SAFETENSORS, PICKLE):
            if reference.inside(name) in files:
                return [anchor, reference.inside(name)]
        raise HubError(
            f"{reference.text} has an {CONFIG} but no weights ({SAFETENSORS} or {PICKLE}); its "
            "author has to upload them."
        )

    return fetch(reference, anchor, choose, verify=True, ask=ask)


def resolve_base(ref: str, *, code: bool = False) -> Snapshot:
    """The folder of a base model. A name without an owner, such as `gpt2`, may be on the Hub.

    code: fetch the repository's Python files too (for --trust-remote-code). Raises
    ReferenceError_ or HubError.
    """
    reference = Reference.parse(ref, bare=True)
    if reference.path is not None:
        return Snapshot(reference.path, reference.text)
    anchor = reference.inside("config.json")

    def choose(files: Collection[str], get: Callable[[str], Path]) -> list[str]:
        if CONFIG in files and anchor not in files:
            raise HubError(
                f"{reference.text} is an adapter, not a base model; give the model it was trained "
                "on."
            )
        if anchor not in files:
            raise HubError(
                f"{reference.text} has no config.json, so it is no transformers model; check "
                "--base."
            )
        names = {file: file.rpartition("/")[2] for file in sorted(files)}
        small = [
            file
            for file, name in names.items()
            if file == reference.inside(name)
            and (name in BESIDE_WEIGHTS or (code and name.endswith(".py")))
        ]
        weights = weight_names(
            lambda name: reference.inside(name) in files,
            lambda name: get(reference.inside(name)),
            reference.text,
            HubError,
        )
        if not weights:
            raise HubError(
                f"{reference.text} has neither safetensors nor pytorch_model.bin weights; give "
                "another base or revision."
            )
        return [anchor, *small, *map(reference.inside, weights)]

    return fetch(reference, anchor, choose, verify=False)


def base_directory(named: str | None) -> Path | None:
    """The directory of a base's config.json; None if it is out of reach, and for no name.

    It is local, or in the cache, or is downloaded there without the weights.
    """
    try:
        reference = Reference.parse(named or "", bare=True)
        place = reference.path
        if place is None:
            name = reference.inside("config.json")
            root = cached(reference, name)
            file = fetch_first(reference, [name]) if root is None else root / name
            place = None if file is None else file.parent
    except LoraprobeError:
        return None
    return place if place is not None and (place / "config.json").is_file() else None


def common_base(adapters: Sequence[Adapter]) -> str:
    """The base that all adapters' configs name, for `--base auto`, with their common revision.

    Raises BaseError if an adapter names no base, CompatibilityError if the names differ.
    """
    unnamed = [adapter.name for adapter in adapters if not adapter.base_model]
    if unnamed or not adapters:
        raise BaseError(
            f"{' and '.join(unnamed) or 'No adapter'} does not say which base model it was trained "
            "on; name it with --base."
        )
    named = {adapter.name: str(adapter.base_model) for adapter in adapters}
    if len(set(named.values())) > 1:
        listed = ", ".join(f"{name} says {base}" for name, base in named.items())
        raise CompatibilityError(
            f"The adapters name different base models ({listed}); choose one with --base."
        )
    base = next(iter(named.values()))
    try:
        Reference.parse(base, bare=True)
    except ReferenceError_:
        raise BaseError(
            f"The adapters name the base {base!r}, which is neither on this machine nor on the "
            "Hub; say where it is with --base."
        ) from None
    revisions = {r for adapter in adapters if (r := adapter.config.get("revision"))}
    if len(revisions) == 1 and not Path(base).expanduser().is_dir():
        return f"{base}@{revisions.pop()}"
    return base


def _no_adapter(reference: Reference, files: Collection[str]) -> str:
    folders = sorted(f.rpartition("/")[0] for f in files if f.endswith(f"/{CONFIG}"))
    at = f"{reference.repo}@{reference.revision or 'main'}"
    if reference.folder and CONFIG in files:
        folders = ["", *folders]
    where = f"sub-folder {reference.folder!r} of {at}" if reference.folder else at
    if folders:
        listed = ", ".join(f"{at}:{folder}" if folder else at for folder in folders[:20])
        more = f" and {len(folders) - 20} more" if len(folders) > 20 else ""
        return f"There is no adapter in {where}, but there is in {listed}{more}; name one."
    if "config.json" in files:
        return f"{where} is a whole model, not an adapter; give it as --base."
    return f"There is no adapter (no {CONFIG}) in {where}; check the reference."
