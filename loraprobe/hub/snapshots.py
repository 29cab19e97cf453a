"""The folder that holds the files which are needed of an adapter or of a base model."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from loraprobe.adapters import Adapter, agreed_base
from loraprobe.adapters.config import CONFIG
from loraprobe.adapters.reading import PICKLE, SAFETENSORS, find_directory
from loraprobe.checkpoint import BESIDE_WEIGHTS, weight_names
from loraprobe.errors import (
    AdapterError,
    BaseError,
    CompatibilityError,
    HubError,
    LoraprobeError,
    ReferenceError_,
)
from loraprobe.hub.reference import LOCAL_START, Reference
from loraprobe.hub.repository import CARD, Snapshot, cached, fetch, fetch_first

TRAINING = "training_args.yaml"  # of LLaMA-Factory's web interface


def resolve_adapter(reference: Reference) -> Snapshot:
    """The folder with an adapter's files, which are downloaded if they are on the Hub.

    These are its config, its weights, and what tells of its training. Raises AdapterError or
    HubError if it holds no adapter.
    """
    if reference.path is not None:
        try:
            return Snapshot(find_directory(reference.path), reference.text)
        except AdapterError as error:
            typed = reference.text
            if typed.startswith(LOCAL_START) or not re.fullmatch(r"[\w.-]+/[\w.-]+", typed):
                raise
            hint = f"To mean the Hub's repository write {typed}@main."
            raise AdapterError(f"{error} {hint}") from None
    anchor = reference.inside(CONFIG)

    def choose(files: Collection[str], _: object) -> list[str]:
        if anchor not in files:
            raise HubError(_no_adapter(reference, files))
        weights = [reference.inside(name) for name in (SAFETENSORS, PICKLE)]
        told = [(reference.inside(name), name) for name in (CARD, TRAINING)]
        held = [[name for name in names if name in files][:1] for names in (weights, *told)]
        if not held[0]:
            raise HubError(
                f"{reference.text} has an {CONFIG} but no weights ({SAFETENSORS} or {PICKLE}); its "
                "author has to upload them."
            )
        return list(dict.fromkeys([anchor, *itertools.chain(*held)]))

    return fetch(reference, anchor, choose, verify=True)


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
    base = agreed_base(named.values())
    if base is None:
        listed = ", ".join(f"{name} says {base}" for name, base in named.items())
        raise CompatibilityError(
            f"The adapters name different base models ({listed}); choose one with --base."
        )
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
