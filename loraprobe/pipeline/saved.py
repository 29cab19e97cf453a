"""Compositions on disk: a directory that `load_composition` (`loading`) restores.

    composition.json      schema_version, the router with its options, the experts in their order,
                          where each came from and what was done to it, sha256 of every file
    experts/NAME/         each expert as a PEFT directory of its own
    router.safetensors    what the router has learned, where it has
    peft/                 what peft's own Arrow needs to compute the same, where it can
                          (see arrow_export): arrow.json, prototypes.safetensors
    README.md             the card

An expert's files are copied if it is routed as they are. It is written anew if it was balanced,
subtracted from or translated, or had no files. Nothing in the directory is code or a pickle;
loading checks every hash and builds the router from the registry. Saving writes all or nothing.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from loraprobe._version import __version__
from loraprobe.adapters import (
    Adapter,
    check_apart,
    check_output,
    public_name,
    public_value,
    read_adapter,
    staged_directory,
)
from loraprobe.adapters.config import CONFIG
from loraprobe.adapters.tensors import SAFETENSORS, open_tensors
from loraprobe.base import Base
from loraprobe.composition import Composition, Router
from loraprobe.errors import UsageError
from loraprobe.file_hashes import file_hash
from loraprobe.pipeline.arrow_export import arrow_config, prototypes, why_not_peft
from loraprobe.records import AdapterSummary, Transformation, plain
from loraprobe.routing import ROUTERS
from loraprobe.secrets import scrub

SCHEMA_VERSION = 1
FILE, STATE, CARD = "composition.json", "router.safetensors", "README.md"
PEFT, PROTOTYPES = "peft/arrow.json", "peft/prototypes.safetensors"
OF_MODULES = frozenset(
    "target_modules exclude_modules modules_to_save layers_pattern rank_pattern alpha_pattern "
    "target_parameters".split()
)
UNREADABLE_BY_PEFT = frozenset({"unprefixed-keys"})


@dataclass(frozen=True, eq=False)
class Routed:
    """A composition that can be saved, and how it was made.

    `base`: its modules decide whether peft can express the composition. `sources`: the experts in
    one row each, with their licences, once it has a card.
    """

    composition: Composition
    base: Base | None = None
    transformations: tuple[Transformation, ...] = ()
    card: str | None = None
    sources: tuple[AdapterSummary, ...] = ()

    @property
    def name(self) -> str:
        return self.composition.name

    def __repr__(self) -> str:
        return f"<Routed {repr(self.composition).partition(' ')[2]}"

    @cached_property
    def why_not_peft(self) -> str | None:
        """Why peft's own Arrow cannot compute the same; None where it can."""
        return why_not_peft(self.composition, self.base)

    @property
    def peft_note(self) -> str:
        """Whether and how peft's own Arrow can compute the same, as a sentence."""
        if self.why_not_peft is not None:
            return f"peft's own Arrow cannot express it: {self.why_not_peft}"
        return (
            "peft's own Arrow computes the same once it is given the exact prototypes that are "
            "stored with it; the card has the lines that load it."
        )

    def save(self, directory: str | Path, overwrite: bool = False) -> None:
        """Writes the directory.

        Raises OutputError if it cannot be written or would overwrite a source, UsageError for a
        router that has not learned yet, UnsupportedAdapter for tensors that no PEFT file holds.
        """
        router = _router_document(self.composition.router)
        target = Path(directory)
        sources = [expert.source.path for expert in self.composition.experts]
        sources += [self.base.path] if self.base is not None else []
        check_apart(target, filter(None, sources))
        check_output(target, overwrite)
        with staged_directory(target, overwrite) as staging:
            experts = _write_experts(self.composition.experts, staging, self.transformations)
            state = self.composition.router.state()
            if state:
                _write_tensors(state, staging / STATE)
                router["state_sha256"] = file_hash(staging / STATE)
            if self.why_not_peft is None:
                self._write_peft(staging, [f"experts/{expert['folder']}" for expert in experts])
            document = {
                "schema_version": SCHEMA_VERSION,
                "loraprobe": __version__,
                "name": self.composition.name,
                "base": plain(self.base.summary()) if self.base is not None else None,
                "router": router,
                "experts": experts,
                "peft": {"why_not": self.why_not_peft},
            }
            _write(staging / FILE, document)
            if self.card is not None:
                (staging / CARD).write_text(self.card, encoding="utf-8")

    def _write_peft(self, staging: Path, experts: Sequence[str]) -> None:
        """The files that the card's lines for peft read."""
        (staging / PEFT).parent.mkdir()
        _write_tensors(prototypes(self.composition), staging / PROTOTYPES)
        document = {
            "experts": experts,
            "arrow_config": arrow_config(self.composition),
            "prototypes": PROTOTYPES,
        }
        _write(staging / PEFT, document)


def _write_experts(
    experts: Sequence[Adapter], staging: Path, steps: Sequence[Transformation]
) -> list[dict[str, Any]]:
    """Writes each expert's directory; returns the entries of composition.json."""
    done = {step.adapter: plain(step) for step in steps}
    entries: list[dict[str, Any]] = []
    for expert in experts:
        folder = _folder(expert.name, {entry["folder"] for entry in entries})
        place = staging / "experts" / folder
        copied = _is_as_filed(expert)
        if copied:
            _copy(expert, place)
        else:
            # Copies of the base's own weights are no part of a change to it.
            kept = tuple(extra for extra in expert.extras if extra.kind != "base_copy")
            dataclasses.replace(expert, extras=kept).save(place)
        entries.append(
            {
                "name": expert.name,
                "folder": folder,
                "reference": expert.source.public,
                "commit": expert.source.commit,
                "sha256": expert.sha256,
                "copied": copied,
                "transformation": done.get(expert.name),
                "files": {name: file_hash(place / name) for name in (CONFIG, SAFETENSORS)},
            }
        )
    return entries


def _folder(name: str, taken: set[str]) -> str:
    """A folder name that every file system takes and no other expert has."""
    base = re.sub(r"[^A-Za-z0-9._-]", "-", name).strip(".") or "expert"
    folder, number = base, 2
    while folder.lower() in {other.lower() for other in taken}:
        folder, number = f"{base}-{number}", number + 1
    return folder


def _is_as_filed(expert: Adapter) -> bool:
    """Whether an expert's files describe it: it was not scaled, subtracted from or translated, and
    peft can read its keys."""
    if expert.weights_file is None or any(i.code in UNREADABLE_BY_PEFT for i in expert.issues):
        return False
    return read_adapter(expert.weights_file.parent, expert.name).layout == expert.layout


def _copy(expert: Adapter, place: Path) -> None:
    """Copies an expert's files without paths and texts of the machine that trained it.

    Tensors of a pickle keep their keys; a path in the config becomes its last part.
    """
    assert expert.weights_file is not None
    place.mkdir(parents=True)
    config = _public(expert.config)
    if config == expert.config:
        shutil.copyfile(expert.weights_file.parent / CONFIG, place / CONFIG)
    else:
        _write(place / CONFIG, config)
    file = open_tensors(expert.weights_file.parent)
    plain_header = file.metadata in ({}, {"format": "pt"})
    if plain_header and expert.weights_file.suffix == ".safetensors":
        shutil.copyfile(expert.weights_file, place / SAFETENSORS)
    else:
        _write_tensors({key: file.read(key) for key in file.shapes}, place / SAFETENSORS)


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """adapter_config.json as it may be published; names and patterns of modules stay."""

    base = public_name(config.get("base_model_name_or_path"))
    named = {**config, "base_model_name_or_path": base} if base else config
    return {key: held if key in OF_MODULES else public_value(held) for key, held in named.items()}


def _write_tensors(tensors: Mapping[str, Any], path: Path) -> None:
    own = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    save_file(own, str(path), metadata={"format": "pt"})


def _write(path: Path, document: Mapping[str, Any]) -> None:
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(scrub(text) + "\n", encoding="utf-8")


def _router_document(router: Router) -> dict[str, Any]:
    """A registered router as plain data. Raises UsageError for another router, and for one that
    has to learn from prompts first."""
    name = router.name
    if name not in ROUTERS.names() or ROUTERS.get(name) is not type(router):
        raise UsageError(
            f"Router {router!r} is none of {', '.join(ROUTERS.names())}, so a saved "
            "composition could not be read back."
        )
    if router.needs_prompts:
        raise UsageError(
            f"Router {router} learns from prompts of each adapter before it can be "
            "saved; give --base, and --router-prompts NAME=FILE if you have "
            "some."
        )
    options = {f.name: getattr(router, f.name) for f in dataclasses.fields(router) if f.init}
    finite = {k: str(v) if v in (float("inf"), float("-inf")) else v for k, v in options.items()}
    return {"name": name, "options": finite, "state_sha256": None}
