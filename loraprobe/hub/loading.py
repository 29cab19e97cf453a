"""Finds what references name: adapters, each with those that were in its base, and base models.

Adapters that were in the base of another one when it was trained are named by its files, in this
order:

- training_args.yaml, which the web interface of LLaMA-Factory writes: `adapter_name_or_path` names
  adapters, which are merged into the base. Without `create_new_adapter` the last one of them is not
  merged, but trained further.
- adapter_config.json: its `base_model_name_or_path` may be an adapter.
- The card: its `base_model`, its tags `base_model:adapter:NAME`, and the sentence by which the
  Trainer of transformers names the model that was given. A card says in the same words that an
  adapter was in the base and that its training was continued, so the weights tell which it was
  (`_by_card`).

They are `Adapter.parents`; compositions need a base that holds them (`compatibility.identity`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePosixPath

import torch

from loraprobe.adapters import Adapter, Source, agreed_base, local_name, read_adapter
from loraprobe.adapters.config import CONFIG
from loraprobe.adapters.files import PICKLE, SAFETENSORS, find_directory, foreign_weights
from loraprobe.adapters.types import Parent
from loraprobe.checkpoint import BESIDE_WEIGHTS, weight_names
from loraprobe.defaults import FAMILY_COSINE
from loraprobe.errors import (
    AdapterError,
    BadReference,
    BaseError,
    CompatibilityError,
    HubError,
    LoraprobeError,
    UsageError,
)
from loraprobe.findings import finding
from loraprobe.formatting import first_names
from loraprobe.front_matter import read_front_matter, read_mapping
from loraprobe.hub.client import (
    CARD,
    Repository,
    Snapshot,
    cached,
    endpoint,
    held_beside,
    is_offline,
    read_card,
)
from loraprobe.hub.reference import LOCAL_START, Reference, by_parents, unique_names
from loraprobe.lora.grams import gram_matrices

TRAINING = "training_args.yaml"  # of LLaMA-Factory's web interface
TAG = "base_model:adapter:"
SENTENCE = re.compile(r"fine-tuned version of \[([^\]\s]{1,200})\]\(")


def load(ref: str | Path) -> Adapter:
    """Loads the adapter of a reference. Factors are read from the file when needed.

    Raises BadReference, HubError, AdapterError or CompatibilityError.
    """
    return _load(Reference.parse(str(ref)))


def load_all(refs: Sequence[str | Path | Adapter] | str | Path | Adapter) -> list[Adapter]:
    """Loads one or several adapters in their order, with unique names.

    Adapter objects are accepted too. Names chosen by the user (NAME=REF) stay; others get -2,
    -3 ... if they collide. Raises as `load`; wrong references are told before anything is loaded.
    """
    if isinstance(refs, (str, Path, Adapter)):
        refs = [refs]
    if not isinstance(refs, Iterable):
        raise UsageError(f"adapters takes adapters and references, not {refs!r:.60}.")
    for ref in refs:
        if not isinstance(ref, (str, Path, Adapter)):
            raise UsageError(f"adapters takes adapters and references, not {ref!r:.60}.")
        if not isinstance(ref, Adapter):
            Reference.parse(str(ref))
    adapters = []
    for _, _, adapter in load_each(refs):
        if isinstance(adapter, LoraprobeError):
            raise adapter
        adapters.append(adapter)
    return adapters


def load_each(
    refs: Sequence[str | Path | Adapter],
) -> Iterator[tuple[str, str, Adapter | LoraprobeError]]:
    """Loads adapters one after the other: (unique name, public reference, adapter or its error).

    Raises UsageError for a name that cannot be given, before anything is loaded.
    """
    named = [_told(ref) for ref in refs]
    short = by_parents([name for name, *_ in named], [place for *_, place in named])
    names = unique_names([(name, one[1]) for name, one in zip(short, named, strict=True)])
    for ref, name, (_, _, public, _) in zip(refs, names, named, strict=True):
        try:
            if isinstance(ref, Adapter):
                adapter = ref.renamed(name)
            else:  # what is found in it is told by the name that it has here
                adapter = _load(replace(Reference.parse(str(ref)), name=name))
        except LoraprobeError as error:
            yield name, public, error
        else:
            yield name, adapter.source.public, adapter


def _told(ref: str | Path | Adapter) -> tuple[str, bool, str, Path | None]:
    """The name of an adapter, whether the user chose it, its reference as it may be published, and
    the folder that gave it its name.

    Raises UsageError for a name that cannot be given.
    """
    if isinstance(ref, Adapter):
        local = ref.source.public == ref.name != ref.source.reference
        return ref.name, False, ref.source.public, Path(ref.source.reference) if local else None
    try:
        parsed = Reference.parse(str(ref))
    except BadReference:
        return local_name(str(ref)), False, local_name(str(ref)), None
    public = parsed.text if parsed.path is None else local_name(parsed.text)
    return parsed.short, parsed.name is not None, public, None if parsed.name else parsed.path


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
            raise AdapterError(str(error), hint) from None
    repository = Repository(reference)
    with repository.choosing():
        anchor = reference.inside(CONFIG)
        if anchor not in repository.files:
            raise HubError(_no_adapter(reference, repository.files))
        weights = [reference.inside(name) for name in (SAFETENSORS, PICKLE, *foreign_weights())]
        present = [name for name in weights if name in repository.files]
        if not present:
            raise HubError(
                f"{reference.text} has an {CONFIG} but no weights ({SAFETENSORS} or {PICKLE}); its "
                "author has to upload them."
            )
        needed = [anchor, present[0]]
        for name in (CARD, TRAINING):
            places = (reference.inside(name), name)
            needed += [place for place in places if place in repository.files][:1]
        return repository.snapshot(needed)


def _no_adapter(reference: Reference, files: Collection[str]) -> str:
    at = f"{reference.repo}@{reference.revision or 'main'}"
    where = f"sub-folder {reference.folder!r} of {at}" if reference.folder else at
    places = [f"{at}:{PurePosixPath(f).parent}" for f in files if PurePosixPath(f).name == CONFIG]
    if places:
        listed = first_names(sorted(place.removesuffix(":.") for place in places), 20)
        return f"There is no adapter in {where}, but there is in {listed}; name one."
    if "config.json" in files:
        return f"{where} is a whole model, not an adapter; give it as --base."
    return f"There is no adapter (no {CONFIG}) in {where}; check the reference."


# An adapter and what was in its base.


def _load(reference: Reference) -> Adapter:
    """Loads an adapter, with those that its files say were in its base: by the first that does."""
    adapter = _read(reference)
    if merged := _merged_before(_text(adapter, TRAINING)):
        return _with_parents(adapter, merged, TRAINING)
    if adapter.base_model and is_adapter(adapter.base_model, adapter):
        return _with_parents(adapter, [adapter.base_model], CONFIG)
    named = _named_in_card(adapter)
    return adapter if named is None else _by_card(adapter, named)


def _read(reference: Reference) -> Adapter:
    """The adapter of a reference, whatever its files say about its training."""
    snapshot = resolve_adapter(reference)
    source = Source(snapshot.reference, snapshot.path, snapshot.commit)
    return read_adapter(snapshot.path, reference.short, source)


def _with_parents(adapter: Adapter, names: Sequence[str], file: str) -> Adapter:
    """The adapter with the parents that one of its files names, and the name of their base."""
    parents = []
    for name in names:
        try:
            parents.append(Parent(name, file, _read(Reference.parse(name))))
        except LoraprobeError:  # the finding about it says that it is not found
            parents.append(Parent(name, file))
    base = next((p.adapter.base_model for p in parents if p.adapter), None)
    config = dict(adapter.config)
    if base is not None and base != adapter.base_model:
        config |= {"base_model_name_or_path": base, "revision": None}
    return replace(
        adapter, parents=tuple(parents), base_model=base or adapter.base_model, config=config
    )


def _by_card(adapter: Adapter, name: str) -> Adapter:
    """The adapter with what follows from its card, which names another adapter.

    The weights of the two tell what that means:

    - The other one cannot be read: nothing is known, and a note says so.
    - They are the same: it is a copy, whose card was copied too. Nothing follows.
    - They are much alike: its training was continued, so it holds the other one. A note says so.
    - They differ: the other one was in the base, as a parent. Since that is a conclusion, the
      finding about it is a warning where other files make it an error (`parent_issues`).
    """
    try:
        other = _read(Reference.parse(name))
        if adapter.layout == other.layout and adapter.sha256 == other.sha256:
            return adapter
        continued = looks_continued(adapter, other)
    except LoraprobeError:
        message = (
            f"{adapter.name} may have been trained on {name}, which cannot be read, as its card "
            "says."
        )
        unread = finding("on-adapter", (adapter.name,), message, severity="note", cure="")
        return replace(adapter, issues=(*adapter.issues, unread))
    if continued:
        message = f"{adapter.name} continues the training of {other.name}, as its card says."
        note = finding("continued-adapter", (adapter.name,), message)
        return replace(adapter, issues=(*adapter.issues, note))
    return replace(adapter, parents=(Parent(name, CARD, other),))


# What its files say.


def _named_in_card(adapter: Adapter) -> str | None:
    """The first adapter that its card names, and that is not the adapter itself."""
    source = adapter.source
    known = adapter.base_model, source.reference, re.split("[@:]", source.reference)[0]
    named = (name for name in _trained(_text(adapter, CARD)) if name not in known)
    return next((name for name in named if is_adapter(name, adapter)), None)


def is_adapter(name: str, teller: Adapter) -> bool:
    """Whether a name is that of another adapter, and of no whole model beside it.

    The Hub is asked where the adapter that tells it came from there.
    """
    try:
        reference = Reference.parse(name)
    except LoraprobeError:
        return False
    if reference.path is not None:
        own = teller.source.path
        if own is not None and own.resolve() == reference.path.resolve():
            return False  # it was saved where its base was
        files = {file for file in (CONFIG, "config.json") if (reference.path / file).is_file()}
        return files == {CONFIG}
    if cached(reference, "config.json"):
        return False
    if cached(reference, CONFIG):
        return True
    asks = teller.source.commit is not None and not is_offline()
    return asks and _listed_as_adapter(reference, endpoint())


@lru_cache(maxsize=256)
def _listed_as_adapter(reference: Reference, hub: str) -> bool:
    """Whether the Hub at an address lists the files of an adapter there."""
    try:
        files = Repository(reference).files
    except LoraprobeError:  # nothing is known, so the name counts as a base
        return False
    return reference.inside(CONFIG) in files and reference.inside("config.json") not in files


def looks_continued(adapter: Adapter, other: Adapter) -> bool:
    """Whether an adapter looks like another one that was trained further, by their cosine."""
    paths = [path for path in adapter.layout if path in other.layout]
    shapes = ((adapter.layout[path].shape, other.layout[path].shape) for path in paths)
    if not paths or any(one != theirs for one, theirs in shapes):
        return False
    parts = gram_matrices([adapter.modules, other.modules], paths)
    inner = torch.stack([part.inner.sum(0) for part in parts]).sum(0)
    lengths = (inner[0, 0] * inner[1, 1]).clamp_min(0).sqrt()
    return bool(inner[0, 1] >= FAMILY_COSINE * lengths)


def _text(adapter: Adapter, name: str) -> str:
    """A file beside an adapter that is on this machine; "" if it cannot be read."""
    file = held_beside(adapter.source, name)
    try:
        return (read_card(file, adapter.source.public) if file else None) or ""
    except LoraprobeError:
        return ""


def _merged_before(training: str) -> list[str]:
    """The adapters that a training file says were merged into the base, the lowest first."""
    given = read_mapping(training)
    names = given.get("adapter_name_or_path")
    names = names.split(",") if isinstance(names, str) else names
    if not (given.get("do_train") and isinstance(names, list)):
        return []
    adapters = [str(name).strip() for name in names]
    return adapters if given.get("create_new_adapter") else adapters[:-1]


def _trained(card: str) -> Iterator[str]:
    """The models that a card names as what was trained."""
    fields = read_front_matter(card)
    named, tags = fields.get("base_model"), fields.get("tags")
    for name in named if isinstance(named, list) else [named]:
        yield from [name] if isinstance(name, str) else []
    for tag in tags if isinstance(tags, list) else []:
        if isinstance(tag, str) and tag.startswith(TAG):
            yield tag.removeprefix(TAG)
    yield from SENTENCE.findall(card)


# Base models.


def resolve_base(ref: str, *, code: bool = False) -> Snapshot:
    """The folder of a base model. A name without an owner, such as `gpt2`, may be on the Hub.

    code: fetch the repository's Python files too (for --trust-remote-code). Raises
    BadReference or HubError.
    """
    reference = Reference.parse(ref, bare=True)
    if reference.path is not None:
        return Snapshot(reference.path, reference.text)
    repository, anchor = Repository(reference), reference.inside("config.json")
    files, named = repository.files, reference.text
    with repository.choosing():
        if CONFIG in files and anchor not in files:
            raise HubError(
                f"{named} is an adapter, not a base model; give the model it was trained on."
            )
        if anchor not in files:
            raise HubError(
                f"{named} has no config.json, so it is no transformers model; check --base."
            )
        weights = weight_names(
            lambda name: reference.inside(name) in files,
            lambda name: repository.get(reference.inside(name), verify=False),
            named,
            HubError,
        )
        if not weights:
            raise HubError(
                f"{named} has neither safetensors nor pytorch_model.bin weights; give another base "
                "or revision."
            )
        names = [file.rpartition("/")[2] for file in sorted(files)]
        small = [n for n in names if n in BESIDE_WEIGHTS or (code and n.endswith(".py"))]
        needed = dict.fromkeys(map(reference.inside, ("config.json", *small, *weights)))
        return repository.snapshot([n for n in needed if n in files], verify=False)


def base_directory(named: str | None) -> Path | None:
    """The directory of a base's config.json; None if it is out of reach, and for no name.

    It is local, or in the cache, or is downloaded there without the weights.
    """
    try:
        reference = Reference.parse(named or "", bare=True)
        place = reference.path
        if place is None:
            file = cached(reference, "config.json")
            file = file or Repository(reference).get(reference.inside("config.json"), verify=False)
            place = file.parent
    except LoraprobeError:
        return None
    return place if (place / "config.json").is_file() else None


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
    except BadReference:
        raise BaseError(
            f"The adapters name the base {base!r}, which is neither on this machine nor on the "
            "Hub; say where it is with --base."
        ) from None
    revisions = {r for adapter in adapters if (r := adapter.config.get("revision"))}
    if len(revisions) == 1 and not Path(base).expanduser().is_dir():
        return f"{base}@{revisions.pop()}"
    return base
