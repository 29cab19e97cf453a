"""Resolves references to adapters and base models: local directories, or a commit on the Hub.

Only the needed files are downloaded: config and weights of an adapter; config, tokenizer and
weights in one format of a base. HF_HOME, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE apply. Every
failure raises a HubError or ReferenceError_ with one sentence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path

from loraprobe.adapters import Adapter, Source, read_adapter
from loraprobe.adapters.config import check_config
from loraprobe.adapters.reading import find_directory
from loraprobe.checkpoint import check_link, shards_of
from loraprobe.errors import AdapterError, BaseError, CompatibilityError, HubError, ReferenceError_
from loraprobe.hub.licences import declared_licence, is_gated
from loraprobe.hub.reference import CONFIG, Reference, unique_names
from loraprobe.hub.repository import Snapshot, fetch, fetch_first, first_of
from loraprobe.hub.search import FoundAdapter, find_adapters
from loraprobe.limits import limits

__all__ = [
    "FoundAdapter",
    "Reference",
    "Snapshot",
    "common_base",
    "declared_licence",
    "find_adapters",
    "is_gated",
    "load",
    "load_all",
    "model_card",
    "read_card",
    "resolve_adapter",
    "resolve_base",
]

ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
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
    wanted = [
        (one.name, False) if isinstance(one, Adapter) else (one.short, one.name is not None)
        for one in parsed
    ]
    names = unique_names(wanted)
    adapters = [one if isinstance(one, Adapter) else _load(one) for one in parsed]
    return [
        adapter if adapter.name == name else adapter.renamed(name)
        for adapter, name in zip(adapters, names, strict=True)
    ]


def resolve_adapter(reference: Reference) -> Snapshot:
    """The folder with an adapter's files, which are downloaded if they are on the Hub.

    Raises AdapterError or HubError if it holds no adapter.
    """
    if reference.path is not None:
        return Snapshot(_local_adapter(reference, reference.path), reference.text)
    prefix = f"{reference.folder}/" if reference.folder else ""

    def choose(files: Collection[str], _: object) -> list[str]:
        weights = first_of(files, [prefix + name for name in ADAPTER_WEIGHTS])
        if prefix + "adapter_config.json" not in files:
            raise HubError(_no_adapter(reference, files))
        if weights is None:
            raise HubError(
                f"{reference.text} has an adapter_config.json but no weights "
                f"({' or '.join(ADAPTER_WEIGHTS)}); its author has to upload them."
            )
        return [prefix + "adapter_config.json", weights]

    found = fetch(reference, prefix + "adapter_config.json", choose, verify=True)
    return replace(found, path=found.path / reference.folder)


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
        return [prefix + "config.json", *small, *_weights(reference, prefix, files, get)]

    found = fetch(reference, prefix + "config.json", choose, verify=False)
    return replace(found, path=found.path / reference.folder)


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


def model_card(ref: str | Adapter) -> str | None:
    """The text of an adapter's README.md, downloaded if necessary; None if there is none."""
    folder = ref.source.path if isinstance(ref, Adapter) else None
    file = None if folder is None else folder / "README.md"
    if file is None or not file.is_file():
        file = _card_of(ref)
    return read_card(file, ref if isinstance(ref, str) else ref.name) if file else None


def read_card(file: Path, reference: str) -> str | None:
    """The text of a model card, up to the limit; None if the file does not exist.

    Raises HubError for a link that leads out of its repository.
    """
    if not file.is_file():
        return None
    check_link(file, reference, HubError)
    with file.open(encoding="utf-8", errors="replace") as stream:
        return stream.read(limits().card)


def _card_of(ref: str | Adapter) -> Path | None:
    """The README.md of a reference, which is downloaded if it is on the Hub."""
    if not isinstance(ref, Adapter):
        reference = Reference.parse(ref)
    elif ref.source.commit is None:
        return None
    else:
        reference = replace(Reference.parse(ref.source.reference), revision=ref.source.commit)
    if reference.path is not None:
        return reference.path / "README.md"
    places = [f"{reference.folder}/README.md"] if reference.folder else []
    return fetch_first(reference, [*places, "README.md"])


def _local_adapter(reference: Reference, path: Path) -> Path:
    """The directory of a local adapter. Raises AdapterError, which mentions a possible Hub id."""
    try:
        directory = find_directory(path)
        if (directory / "config.json").is_file() and not (directory / CONFIG).is_file():
            raise AdapterError(f"{path} is a whole model, not an adapter; give it as --base.")
        check_config(directory)
    except AdapterError as error:
        if re.fullmatch(r"[\w.-]+/[\w.-]+", reference.text):
            hint = f"To mean the Hub's repository write {reference.text}@main."
            raise AdapterError(f"{error} {hint}") from None
        raise
    return directory


def _no_adapter(reference: Reference, files: Collection[str]) -> str:
    folders = sorted(f.rpartition("/")[0] for f in files if f.endswith("/adapter_config.json"))
    at = f"{reference.repo}@{reference.revision or 'main'}"
    if reference.folder and "adapter_config.json" in files:
        folders = ["", *folders]
    where = f"sub-folder {reference.folder!r} of {at}" if reference.folder else at
    if folders:
        listed = ", ".join(f"{at}:{folder}" if folder else at for folder in folders[:20])
        more = f" and {len(folders) - 20} more" if len(folders) > 20 else ""
        return f"There is no adapter in {where}, but there is in {listed}{more}; name one."
    if "config.json" in files:
        return f"{where} is a whole model, not an adapter; give it as --base."
    return f"There is no adapter (no adapter_config.json) in {where}; check the reference."


def _no_base(reference: Reference, files: Collection[str]) -> str:
    if "adapter_config.json" in files:
        return (
            f"{reference.text} is an adapter, not a base model; give the model it was trained on."
        )
    return f"{reference.text} has no config.json, so it is no transformers model; check --base."


def _weights(
    reference: Reference, prefix: str, files: Collection[str], get: Callable[[str], Path]
) -> list[str]:
    """The weight files in one format, safetensors first; an index gives the names of shards."""
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = f"{prefix}{stem}.{suffix}.index.json"
        if index in files:
            names = [prefix + name for name in shards_of(get(index), reference.text, HubError)]
            if not set(names) <= set(files):
                raise HubError(
                    f"{reference.text} lacks weight files that its {index} names; its author has "
                    "to upload them."
                )
            return [index, *names]
        if f"{prefix}{stem}.{suffix}" in files:
            return [f"{prefix}{stem}.{suffix}"]
    raise HubError(
        f"{reference.text} has neither safetensors nor pytorch_model.bin weights; give another "
        "base or revision."
    )
