"""What the files of an adapter say about other adapters that were in its base when it was trained.

- training_args.yaml, which the web interface of LLaMA-Factory writes: `adapter_name_or_path` names
  adapters, which are merged into the base. Without `create_new_adapter` the last one of them is not
  merged, but trained further.
- adapter_config.json: its `base_model_name_or_path` may be an adapter.
- The card: its `base_model`, its tags `base_model:adapter:NAME`, and the sentence by which the
  Trainer of transformers names the model that was given. A card names a base, an adapter that was
  merged into it, and one whose training was continued alike. In the last case the weights are much
  alike, and the adapter holds the other one already.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from loraprobe.adapters import Adapter
from loraprobe.adapters.config import CONFIG
from loraprobe.defaults import FAMILY_COSINE
from loraprobe.errors import LoraprobeError
from loraprobe.front_matter import read_front_matter, read_mapping
from loraprobe.hub.client import endpoint, is_offline
from loraprobe.hub.reference import Reference
from loraprobe.hub.repository import CARD, cached, held_beside, list_files, read_card
from loraprobe.hub.snapshots import TRAINING
from loraprobe.lora.grams import gram_matrices

TAG = "base_model:adapter:"
SENTENCE = re.compile(r"fine-tuned version of \[([^\]\s]{1,200})\]\(")


@dataclass(frozen=True)
class Said:
    """The adapters below an adapter, the lowest first, by one of its files.

    guess: whether that file may also name an adapter whose training was continued.
    """

    names: list[str]
    file: str
    guess: bool = False


def said_below(adapter: Adapter) -> Said | None:
    """What the first file that names other adapters says; None if none does."""
    if names := _merged_before(_text(adapter, TRAINING)):
        return Said(names, f"its {TRAINING}")
    if adapter.base_model and is_adapter(adapter.base_model, adapter):
        return Said([adapter.base_model], "its config")
    source = adapter.source
    known = adapter.base_model, source.reference, re.split("[@:]", source.reference)[0]
    for name in _trained(_text(adapter, CARD)):
        if name not in known and is_adapter(name, adapter):
            return Said([name], "its card", guess=True)
    return None


def is_adapter(name: str, teller: Adapter) -> bool:
    """Whether a name is that of an adapter, and of no whole model beside it.

    The Hub is asked where the adapter that tells it came from there.
    """
    try:
        reference = Reference.parse(name)
    except LoraprobeError:
        return False
    if reference.path is not None:
        held = {file for file in (CONFIG, "config.json") if (reference.path / file).is_file()}
        return held == {CONFIG}
    if cached(reference, reference.inside("config.json")):
        return False
    if cached(reference, reference.inside(CONFIG)):
        return True
    asks = teller.source.commit is not None and not is_offline()
    return asks and _listed_as_adapter(reference, endpoint())


@lru_cache(maxsize=256)
def _listed_as_adapter(reference: Reference, hub: str) -> bool:
    """Whether the Hub at an address lists the files of an adapter there."""
    try:
        _, files = list_files(reference)
    except LoraprobeError:  # nothing is known, so the name counts as a base
        return False
    return reference.inside(CONFIG) in files and reference.inside("config.json") not in files


def continues(adapter: Adapter, other: Adapter) -> bool:
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
    found = [str(name).strip() for name in names]
    return found if given.get("create_new_adapter") else found[:-1]


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
