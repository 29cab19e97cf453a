"""Searches the Hub for adapters of a base model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loraprobe.errors import HubError, ReferenceError_
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


def find_adapters(base: str, limit: int = 30) -> list[FoundAdapter]:
    """PEFT adapters whose cards name this base model, the most downloaded first.

    base: a Hub id (`owner/name`, or `gpt2`). Raises ReferenceError_ for a directory, HubError where
    the Hub does not answer.
    """
    from huggingface_hub import ModelInfo, constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    reference = Reference.parse(base, bare=True)
    if reference.path is not None:
        raise ReferenceError_(
            f"{base} is a directory, and find asks the Hub; give the base model's name there, "
            "such as owner/name."
        )
    if is_offline():
        raise HubError("find asks the Hub, and HF_HUB_OFFLINE is set; unset it once to search.")
    wanted: dict[str, Any] = {
        "filter": [f"base_model:adapter:{reference.repo}", "peft"],
        "sort": "downloads",
        "limit": limit,
    }
    try:  # one request: HfApi.list_models repeats a failed one for half a minute
        response = get_session().get(
            f"{constants.ENDPOINT}/api/models",
            params=wanted,
            headers=build_hf_headers(),
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
        hf_raise_for_status(response)
        models = [ModelInfo(**row) for row in response.json()][:limit]
    except Exception as error:
        raise explain(error, reference) from None
    return [_found(model) for model in models]


def _found(model: ModelInfo) -> FoundAdapter:
    tags = (tag.partition(":") for tag in model.tags or ())
    licence = next((value for name, _, value in tags if name == "license"), None)
    changed = model.last_modified
    date = changed.date().isoformat() if changed else None
    return FoundAdapter(model.id, model.downloads, model.likes, date, licence)
