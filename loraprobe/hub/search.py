"""Searches the Hub for adapters of a base model."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loraprobe.errors import HubError, ReferenceError_
from loraprobe.hub.copies import copies, list_models
from loraprobe.hub.errors import explain, is_offline
from loraprobe.hub.reference import Reference

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo


@dataclass(frozen=True)
class FoundAdapter:
    """The Hub's description of a repository, whose adapter need not be a LoRA."""

    reference: str
    downloads: int | None
    likes: int | None
    updated: str | None  # date of the last change, as YYYY-MM-DD
    license: str | None
    base: str  # the name that its card gives the base


def find_adapters(base: str, limit: int = 30) -> list[FoundAdapter]:
    """PEFT adapters whose cards name this base model or a proven copy, the most downloaded first.

    base: a Hub id (`owner/name`, or `gpt2`). Raises ReferenceError_ for a directory, HubError where
    the Hub does not answer. Copies are left out if only they cannot be asked for.
    """
    reference = Reference.parse(base, bare=True)
    if reference.path is not None:
        raise ReferenceError_(
            f"{base} is a directory, and find asks the Hub; give the base model's name there, "
            "such as owner/name."
        )
    if is_offline():
        raise HubError("find asks the Hub, and HF_HUB_OFFLINE is set; unset it once to search.")
    found = _of_base(reference, limit)
    with contextlib.suppress(Exception):  # the base itself was answered
        for name in copies(reference.repo):
            found += _of_base(replace(reference, repo=name), limit)
            found.sort(key=lambda one: -(one.downloads or 0))
    return list({one.reference: one for one in found}.values())[:limit]


def _of_base(reference: Reference, limit: int) -> list[FoundAdapter]:
    """PEFT adapters whose cards name exactly this base. Raises HubError."""
    wanted = {
        "filter": [f"base_model:adapter:{reference.repo}", "peft"],
        "sort": "downloads",
        "limit": limit,
    }
    try:
        models = list_models(wanted)[:limit]
    except Exception as error:
        raise explain(error, reference) from None
    return [_found(model, reference.repo) for model in models]


def _found(model: ModelInfo, base: str) -> FoundAdapter:
    tags = (tag.partition(":") for tag in model.tags or ())
    licence = next((value for name, _, value in tags if name == "license"), None)
    changed = model.last_modified
    date = changed.date().isoformat() if changed else None
    return FoundAdapter(model.id, model.downloads, model.likes, date, licence, base)
