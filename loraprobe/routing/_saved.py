"""Compositions on disk: directories that `load_composition` restores.

    composition.json      schema_version, the router with its options, the experts in their order,
                          where each came from and what was done to it, sha256 of every file
    experts/NAME/         each expert as a PEFT directory of its own
    router.safetensors    what the router has learned, where it has
    peft/                 what peft's own Arrow needs to compute the same, where it can:
                          arrow.json, prototypes.safetensors
    router.json           what other programs need to route by text (`text_profile`), where they can
    README.md             the card

An expert's files are copied if it is routed as they are. It is written anew if it was balanced,
subtracted from or translated, or had no files. Nothing in the directory is code or a pickle;
loading checks every hash and builds the router from the registry. Saving writes all or nothing.

peft's `create_arrow_model` (0.21) routes over PEFT directories by Arrow's formula. It finds an
expert's prototype by 15 power iterations on dW^T dW from a random start, which rarely reach the
right singular vector of a trained adapter. The exact prototypes are therefore stored, and a few
lines of the card put them into peft's layers before the first forward pass. peft's Arrow also needs
equal targets and ranks, linear layers only and plain factors. It puts its router on every module of
the base whose name ends like a target's, so all of those must be adapted. Otherwise it cannot
express the composition.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraprobe._version import __version__
from loraprobe.adapters import (
    Adapter,
    Composed,
    Source,
    check_apart,
    check_output,
    public_name,
    public_value,
    read_adapter,
    staged_directory,
)
from loraprobe.adapters.config import CONFIG
from loraprobe.adapters.files import SAFETENSORS, open_tensors
from loraprobe.base import Base
from loraprobe.cache import file_hash
from loraprobe.composition import Composition, Router
from loraprobe.defaults import SPELLED
from loraprobe.errors import AdapterError, UsageError
from loraprobe.records import Transformation, plain
from loraprobe.registry import spec_of
from loraprobe.routing import ROUTERS
from loraprobe.routing.scored import Arrow, prototype
from loraprobe.secrets import scrub
from loraprobe.untrusted import first_problem, read_json

SCHEMA_VERSION = 1
FILE, STATE, CARD = "composition.json", "router.safetensors", "README.md"
PEFT, PROTOTYPES = "peft/arrow.json", "peft/prototypes.safetensors"
OF_MODULES = frozenset(
    "target_modules exclude_modules modules_to_save layers_pattern rank_pattern alpha_pattern "
    "target_parameters".split()
)
UNREADABLE_BY_PEFT = frozenset({"unprefixed-keys"})


@dataclass(frozen=True, eq=False)
class Routed(Composed):
    """A composition that can be saved, and how it was made.

    base: its modules decide whether peft can express the composition. learned: where the prompts
    stand from which the router learned, as the card says it.
    """

    composition: Composition
    base: Base | None = None
    transformations: tuple[Transformation, ...] = ()
    learned: Mapping[str, Any] | None = None

    library: ClassVar[str] = "loraprobe"
    tag: ClassVar[str] = "routing"
    template: ClassVar[str] = "composition.md.jinja"
    load: ClassVar[str] = "loraprobe.load_composition({0}).into(model)"
    load_by_text: ClassVar[str] = "loraprobe.load_composition({0}).answering(prompt).into(model)"

    def __post_init__(self) -> None:
        rows = self.sources or tuple(expert.summary() for expert in self.composition.experts)
        object.__setattr__(self, "sources", rows)
        if self.composition.router.reads_text:
            object.__setattr__(self, "load", self.load_by_text)

    @property
    def written(self) -> None:
        return None

    @property
    def name(self) -> str:
        return self.composition.name

    @property
    def takes_weights(self) -> bool:
        return self.composition.router.constant

    @property
    def choices(self) -> dict[str, Any]:
        """From what a composition of the sources makes it again, as its card says it."""
        router = self.composition.router
        gates = getattr(router, "weights", None)
        return {
            "name": self.name,
            "router": router.name if router.constant else SPELLED.get(router.name, spec_of(router)),
            "weights": gates if gates is None else list(gates),
            **({} if self.learned is None else {"learned": dict(self.learned)}),
        }

    @property
    def card_values(self) -> dict[str, Any]:
        """What its card shows beside its experts."""
        router = self.composition.router
        spelled = SPELLED.get(router.name, spec_of(router, short=True))
        if router.constant:  # with its values
            gates = getattr(router, "weights", None) or ()
            spelled = " ".join([router.name, *(f"{gate:g}" for gate in gates)])
        return {
            "router": spelled,
            "reads_text": router.reads_text,
            "why_not_peft": self.why_not_peft,
            "learned": self.learned,
        }

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
            own, base = self.composition.router, None if self.base is None else self.base.summary()
            rows = [
                {
                    "name": expert["name"],
                    "folder": f"experts/{expert['folder']}",
                    "sha256": expert["files"][SAFETENSORS],
                }
                for expert in experts
            ]
            named = None if base is None else public_name(base.reference)
            for name, text in own.program(rows, named).items():
                (staging / name).write_text(scrub(text), encoding="utf-8")
            if self.why_not_peft is None and isinstance(own, Arrow):  # what the card's lines read
                (staging / PEFT).parent.mkdir()
                _write_tensors(prototypes(self.composition), staging / PROTOTYPES)
                arrow = {
                    "experts": [f"experts/{expert['folder']}" for expert in experts],
                    "arrow_config": {
                        "top_k": min(own.top_k, len(experts)),
                        "router_temperature": own.temperature,
                        "rng_seed": 0,
                    },
                    "prototypes": PROTOTYPES,
                }
                _write(staging / PEFT, arrow)
            document = {
                "schema_version": SCHEMA_VERSION,
                "loraprobe": __version__,
                "name": self.composition.name,
                "base": None if base is None else plain(base),
                "router": router,
                "experts": experts,
                "peft": {"why_not": self.why_not_peft},
            }
            _write(staging / FILE, document)
            if self.card is not None:
                (staging / CARD).write_text(self.card, encoding="utf-8")


def _write_experts(
    experts: Sequence[Adapter], staging: Path, steps: Sequence[Transformation]
) -> list[dict[str, Any]]:
    """Writes each expert's directory; returns the entries of composition.json."""
    done = {step.adapter: plain(step) for step in steps}
    entries: list[dict[str, Any]] = []
    folders: list[str] = []
    for expert in experts:
        folders.append(_folder(expert.name, set(folders)))
    for expert, folder in zip(experts, folders, strict=True):
        place = staging / "experts" / folder
        # Whether its files describe it: it was not scaled, subtracted from or translated, and peft
        # can read its keys.
        copied = (
            expert.weights_file is not None
            and not any(issue.code in UNREADABLE_BY_PEFT for issue in expert.issues)
            and read_adapter(expert.weights_file.parent, expert.name).layout == expert.layout
        )
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


def _copy(expert: Adapter, place: Path) -> None:
    """Copies an expert's files without paths and texts of the machine that trained it.

    Tensors of a pickle keep their keys; a path in the config becomes its last part.
    """
    assert expert.weights_file is not None
    place.mkdir(parents=True)
    # As it may be published; names and patterns of modules stay.
    base = public_name(expert.config.get("base_model_name_or_path"))
    named = {**expert.config, "base_model_name_or_path": base} if base else expert.config
    config = {k: held if k in OF_MODULES else public_value(held) for k, held in named.items()}
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
            f"Router {router} learns from prompts of each adapter before it can be saved; give "
            "--base, and --router-prompts=NAME=FILE if you have some."
        )
    options = {f.name: getattr(router, f.name) for f in dataclasses.fields(router) if f.init}
    finite = {k: str(v) if v in (float("inf"), float("-inf")) else v for k, v in options.items()}
    return {"name": name, "options": finite, "state_sha256": None}


# What peft's own Arrow computes.


def why_not_peft(composition: Composition, base: Base | None = None) -> str | None:
    """Why peft's Arrow cannot compute the same, in one sentence; None where it can."""
    router, (first, *_) = composition.router, composition.experts
    if not isinstance(router, Arrow):
        return f"its router is {router.name}, and peft has only Arrow."
    if router.normalize or router.per != "token" or not math.isfinite(router.temperature):
        return "peft's Arrow decides for each token, without normalize, at a finite temperature."
    ranks = {path: info.rank for path, info in first.layout.items()}
    for expert in composition.experts:
        plain = all(info.kind in ("linear", "conv1d") for info in expert.layout.values())
        more = any(extra.kind != "base_copy" for extra in expert.extras)
        if more or not plain or {p: info.rank for p, info in expert.layout.items()} != ranks:
            return (
                f"{expert.name} is more than the factors of linear layers, or has other modules or "
                f"ranks than {first.name}."
            )
    if base is None:
        return (
            "without the base (--base) nobody knows which other modules its router would be put on."
        )
    names = {path.rpartition(".")[2] for path in ranks}  # by which peft targets modules
    for path in base.weights:
        if path.rpartition(".")[2] in names and path not in ranks:
            return f"its router would be put on {path} too, which no expert adapts."
    return None


@torch.no_grad()
def prototypes(composition: Composition) -> dict[str, Float[Tensor, "n in"]]:
    """Module path -> the experts' exact prototypes [n, in], in their order, float32.

    The sign of a prototype has no meaning; here its largest entry is positive.
    """
    found = {}
    for path in composition.paths:
        rows = [prototype(e.modules[path].to(torch.float32)) for e in composition.experts]
        vectors = torch.stack(rows)
        largest = vectors.gather(1, vectors.abs().argmax(1, keepdim=True))
        found[path] = torch.where(largest < 0, -vectors, vectors)
    return found


# Reading.


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
        found = Listing.model_validate(document)
        if found.router.name not in ROUTERS:
            raise AdapterError(
                f"{home / FILE} has the router {found.router.name!r:.100}, which nothing installed "
                "has; install the extension that has it, or compose the experts anew."
            )
        router = _router(found.router)
        if found.router.state_sha256 is not None:
            _check_hash(home / STATE, found.router.state_sha256)
            router = router.with_state(load_file(str(home / STATE)))
    except ValidationError as error:
        raise _damaged(home, first_problem(error)) from None
    except SafetensorError as error:
        raise AdapterError(
            f"{home / STATE} is broken ({error}); save the composition again."
        ) from None
    except (UsageError, KeyError, TypeError, ValueError) as error:
        raise _damaged(home, f"router: {str(error.args[0]).rstrip('.')}") from None
    if document.get("below"):
        raise AdapterError(
            f"{home / FILE} has adapters that its experts were trained on, which this loraprobe "
            "expects in the base; compose the experts again for a base that holds these."
        )
    experts = list[Adapter]()
    for entry in found.experts:
        place = home / "experts" / entry.folder
        for name in (CONFIG, SAFETENSORS):
            if name not in entry.files:
                raise _damaged(home, f"no sha256 of {name}")
            _check_hash(place / name, entry.files[name])
        source = Source(entry.reference, place, entry.commit)
        experts.append(read_adapter(place, entry.name, source))
    return Composition(found.name, tuple(experts), router)


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


def _check_hash(file: Path, wanted: str) -> None:
    if not file.is_file():
        raise AdapterError(f"{file} is missing; copy the composition again, whole.")
    if file_hash(file) != wanted:
        raise AdapterError(
            f"{file} is not the file that was saved (its sha256 differs); copy the "
            "composition again, or save it anew."
        )
