"""Resolves references to adapters and base models: local directories, or a commit on the Hub.

Only the needed files are downloaded: config and weights of an adapter; config, tokenizer and
weights in one format of a base. HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE apply. Every
failure raises a HubError or ReferenceError_ with one sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from loraprobe.adapters import Adapter, Source, local_name, read_adapter
from loraprobe.adapters.config import CONFIG
from loraprobe.adapters.reading import find_directory
from loraprobe.adapters.tensors import PICKLE, SAFETENSORS
from loraprobe.checkpoint import weight_names
from loraprobe.errors import (
    AdapterError,
    BaseError,
    CompatibilityError,
    HubError,
    LoraprobeError,
    ReferenceError_,
)
from loraprobe.hub.cards import (
    beside,
    declared_licence,
    is_gated,
    model_card,
    prompt_form,
    read_card,
)
from loraprobe.hub.copies import one_base
from loraprobe.hub.datasets import PREFIX as DATASET
from loraprobe.hub.datasets import resolve_dataset
from loraprobe.hub.publishing import check_push, push, summary
from loraprobe.hub.reference import Reference, unique_names
from loraprobe.hub.repository import Snapshot, cached, fetch, fetch_first, first_of
from loraprobe.hub.search import find_adapters

BASE_EXTRAS = frozenset(
    "generation_config.json tokenizer.json tokenizer_config.json special_tokens_map.json "
    "added_tokens.json vocab.json vocab.txt merges.txt tokenizer.model spiece.model "
    "sentencepiece.bpe.model chat_template.jinja chat_template.json tekken.json".split()
)


def load(ref: str | Path) -> Adapter:
    """Loads the adapter of a reference. Factors are read from the file when needed.

    Raises ReferenceError_, HubError or AdapterError.
    """
    return _load(Reference.parse(str(ref)))


def _load(reference: Reference) -> Adapter:
    snapshot = resolve_adapter(reference)
    source = Source(snapshot.reference, snapshot.path, snapshot.commit)
    return read_adapter(snapshot.path, reference.short, source)


def load_all(refs: Sequence[str | Path | Adapter] | str | Path | Adapter) -> list[Adapter]:
    """Loads one or several adapters in their order, with unique names.

    Adapter objects are accepted too. Names chosen by the user (NAME=REF) stay; others get -2,
    -3 ... if they collide.
    """
    if isinstance(refs, (str, Path, Adapter)):
        refs = [refs]
    parsed = [ref if isinstance(ref, Adapter) else Reference.parse(str(ref)) for ref in refs]
    names = unique_names([_wanted(one) for one in parsed])
    adapters = [one if isinstance(one, Adapter) else _load(one) for one in parsed]
    return [
        adapter if adapter.name == name else adapter.renamed(name)
        for adapter, name in zip(adapters, names, strict=True)
    ]


def load_each(
    refs: Sequence[str | Path | Adapter],
) -> Iterator[tuple[str, str, Adapter | LoraprobeError]]:
    """Loads adapters one after the other: (unique name, public reference, adapter or its error).

    Raises UsageError for a name that cannot be given, before anything is loaded.
    """
    parsed = [ref if isinstance(ref, Adapter) else _parsed(str(ref)) for ref in refs]
    names = unique_names([_wanted(one, str(ref)) for one, ref in zip(parsed, refs, strict=True)])
    for ref, one, name in zip(refs, parsed, names, strict=True):
        if isinstance(one, Adapter):
            yield name, one.source.public, one.renamed(name)
        elif isinstance(one, ReferenceError_):
            yield name, local_name(str(ref)), one
        else:
            try:
                adapter = _load(one)
            except LoraprobeError as error:
                yield name, one.text if one.path is None else local_name(one.text), error
            else:
                yield name, adapter.source.public, adapter.renamed(name)


def _parsed(text: str) -> Reference | ReferenceError_:
    try:
        return Reference.parse(text)
    except ReferenceError_ as error:
        return error


def _wanted(one: Adapter | Reference | ReferenceError_, text: str = "") -> tuple[str, bool]:
    """The name of an adapter that was given as `text`, and whether the user chose it."""
    if isinstance(one, Adapter):
        return one.name, False
    if isinstance(one, ReferenceError_):
        return local_name(text), False
    return one.short, one.name is not None


def resolve_adapter(reference: Reference) -> Snapshot:
    """The folder with an adapter's files, which are downloaded if they are on the Hub.

    Raises AdapterError or HubError if it holds no adapter.
    """
    if reference.path is not None:
        try:
            return Snapshot(find_directory(reference.path), reference.text)
        except AdapterError as error:
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", reference.text):
                raise
            hint = f"To mean the Hub's repository write {reference.text}@main."
            raise AdapterError(f"{error} {hint}") from None
    prefix = f"{reference.folder}/" if reference.folder else ""

    def choose(files: Collection[str], _: object) -> list[str]:
        weights = first_of(files, [prefix + SAFETENSORS, prefix + PICKLE])
        if prefix + CONFIG not in files:
            raise HubError(_no_adapter(reference, files))
        if weights is None:
            raise HubError(
                f"{reference.text} has an {CONFIG} but no weights ({SAFETENSORS} or {PICKLE}); its "
                "author has to upload them."
            )
        return [prefix + CONFIG, weights]

    return fetch(reference, prefix + CONFIG, choose, verify=True)


def resolve_base(ref: str, *, code: bool = False) -> Snapshot:
    """The folder of a base model. A name without an owner, such as `gpt2`, may be on the Hub.

    code: fetch the repository's Python files too (for --trust-remote-code). Raises
    ReferenceError_ or HubError.
    """
    reference = Reference.parse(ref, bare=True)
    if reference.path is not None:
        return Snapshot(reference.path, reference.text)
    prefix = f"{reference.folder}/" if reference.folder else ""

    def choose(files: Collection[str], get: Callable[[str], Path]) -> list[str]:
        if prefix + "config.json" not in files:
            raise HubError(_no_base(reference, files))
        own = [f for f in sorted(files) if "/" not in f.removeprefix(prefix)]
        small = [
            f for f in own if f.removeprefix(prefix) in BASE_EXTRAS or (code and f.endswith(".py"))
        ]
        weights = weight_names(
            lambda name: prefix + name in files,
            lambda name: get(prefix + name),
            reference.text,
            HubError,
        )
        if not weights:
            raise HubError(
                f"{reference.text} has neither safetensors nor pytorch_model.bin weights; give "
                "another base or revision."
            )
        return [prefix + "config.json", *small, *(prefix + name for name in weights)]

    return fetch(reference, prefix + "config.json", choose, verify=False)


def base_directory(named: str | None) -> Path | None:
    """The directory of a base's config.json; None if it is out of reach, and for no name.

    It is local, or in the cache, or is downloaded there without the weights.
    """
    try:
        reference = Reference.parse(named or "", bare=True)
        place = reference.path
        if place is None:
            name = f"{reference.folder}/config.json" if reference.folder else "config.json"
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


def _no_base(reference: Reference, files: Collection[str]) -> str:
    if CONFIG in files:
        return (
            f"{reference.text} is an adapter, not a base model; give the model it was trained on."
        )
    return f"{reference.text} has no config.json, so it is no transformers model; check --base."
