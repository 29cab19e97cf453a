"""Reads a saved composition; see `saved` for its files."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from loraprobe.adapters import Adapter, Source, read_adapter
from loraprobe.adapters.config import CONFIG
from loraprobe.adapters.tensors import SAFETENSORS
from loraprobe.checkpoint import read_json
from loraprobe.composition import Composition, Router
from loraprobe.errors import AdapterError, UsageError
from loraprobe.file_hashes import file_hash
from loraprobe.json_types import first_problem
from loraprobe.pipeline.saved import FILE, SCHEMA_VERSION, STATE
from loraprobe.routing import ROUTERS


class ExpertEntry(BaseModel):
    """An expert of composition.json; `files` has the sha256 of each of its files."""

    name: str
    folder: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$")
    reference: str
    commit: str | None
    files: dict[str, str]


class RouterEntry(BaseModel):
    """The router of composition.json; `state_sha256` is None if it has learned nothing."""

    name: str
    options: dict[str, Any]
    state_sha256: str | None


class Listing(BaseModel):
    """What is read of composition.json."""

    name: str
    router: RouterEntry
    experts: list[ExpertEntry] = Field(min_length=1)


def load_composition(directory: str | Path) -> Composition:
    """The composition of a directory that `Routed.save` wrote; factors stay in their files.

    Raises AdapterError, naming the file, where something is missing, changed or not ours.
    """
    home = Path(directory)
    if not (home / FILE).is_file():
        raise AdapterError(
            f"{home} holds no {FILE}, so it is no saved composition; `loraprobe "
            "route --output` writes one."
        )
    document = read_json(home / FILE, str(home), AdapterError)
    version = document.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise AdapterError(
            f"{home / FILE} is of version {version!r:.20}, and this loraprobe reads "
            f"{SCHEMA_VERSION}; use the loraprobe that wrote it."
        )
    try:
        listing = Listing.model_validate(document)
        router = _router(listing.router)
    except ValidationError as error:
        raise _damaged(home, first_problem(error)) from None
    except (UsageError, TypeError, ValueError) as error:
        raise _damaged(home, f"router: {str(error).rstrip('.')}") from None
    experts = tuple(_read_expert(home, entry) for entry in listing.experts)
    return Composition(listing.name, experts, _with_state(home, listing.router, router))


def _damaged(home: Path, what: str) -> AdapterError:
    return AdapterError(
        f"{home / FILE} is damaged ({what:.200}); save the composition again, or use the loraprobe "
        "that wrote it."
    )


def _router(entry: RouterEntry) -> Router:
    """The router with its options. Raises UsageError, TypeError or ValueError for other ones."""
    several = {key: held for key, held in entry.options.items() if isinstance(held, list)}
    single = {k: v for k, v in entry.options.items() if k not in several and v is not None}
    spec = ",".join(f"{key}={held}" for key, held in single.items())
    values: dict[str, Any] = {key: tuple(map(float, held)) for key, held in several.items()}
    return dataclasses.replace(ROUTERS.make(f"{entry.name}:{spec}"), **values)


def _with_state(home: Path, entry: RouterEntry, router: Router) -> Router:
    """The router with what it learned, where it has learned something."""
    if entry.state_sha256 is None:
        return router
    _check_hash(home / STATE, entry.state_sha256)
    try:
        return router.with_state(load_file(str(home / STATE)))
    except SafetensorError as error:
        raise AdapterError(
            f"{home / STATE} is broken ({error}); save the composition again."
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(home, f"router: {error}") from None


def _read_expert(home: Path, entry: ExpertEntry) -> Adapter:
    """One expert; the hashes of its files are checked first."""
    place = home / "experts" / entry.folder
    for name in (CONFIG, SAFETENSORS):
        if name not in entry.files:
            raise _damaged(home, f"no sha256 of {name}")
        _check_hash(place / name, entry.files[name])
    return read_adapter(place, entry.name, Source(entry.reference, place, entry.commit))


def _check_hash(file: Path, wanted: str) -> None:
    if not file.is_file():
        raise AdapterError(f"{file} is missing; copy the composition again, whole.")
    if file_hash(file) != wanted:
        raise AdapterError(
            f"{file} is not the file that was saved (its sha256 differs); copy the "
            "composition again, or save it anew."
        )
