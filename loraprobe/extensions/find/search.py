"""Searches the Hub for adapters whose cards name a base model or a proven copy of it."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from loraprobe.adapters.names import unquantised
from loraprobe.errors import BadReference, HubError
from loraprobe.hub import Reference
from loraprobe.hub.client import explain, is_offline
from loraprobe.hub.copies import original_of, same_base

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

MOST_COPIES = 8  # whose adapters are listed


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

    base: a Hub id (`owner/name`, or `gpt2`). Raises BadReference for a directory, HubError where
    the Hub does not answer. Copies are left out if only they cannot be asked for.
    """
    reference = Reference.parse(base, bare=True)
    if reference.path is not None:
        raise BadReference(
            f"{base} is a directory, and find asks the Hub; give the base model's name there, "
            "such as owner/name."
        )
    if is_offline():
        raise HubError("find asks the Hub, and HF_HUB_OFFLINE is set; unset it once to search.")
    adapters = _of_base(reference, limit)
    with contextlib.suppress(Exception):  # the base itself was answered
        for name in copies_of(reference.repo):
            adapters += _of_base(replace(reference, repo=name), limit)
            adapters.sort(key=lambda one: -(one.downloads or 0))
    return list({one.reference: one for one in adapters}.values())[:limit]


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


def copies_of(base: str) -> list[str]:
    """Names of proven copies of a base, its original first: at most MOST_COPIES.

    Candidates are the quantised copies that the Hub lists, and repositories of the same name up to
    owner and quantisation. Raises what the Hub's client raises.
    """
    root, _ = original_of(base)
    copies = dict.fromkeys(name for name in (root,) if name != base)
    for wanted in ({"filter": f"base_model:quantized:{root}"}, {"search": unquantised(root)}):
        for info in list_models({**wanted, "sort": "downloads", "limit": 4 * MOST_COPIES}):
            if unquantised(info.id) == unquantised(root) and len(copies) < MOST_COPIES:
                copies |= {info.id: None} if info.id != base and same_base(info.id, root) else {}
    return list(copies)


def list_models(wanted: Mapping[str, Any]) -> list[ModelInfo]:
    """The repositories that the Hub lists for a query, by one request.

    HfApi.list_models repeats a failed one for half a minute. Raises what the Hub's client raises.
    """
    from huggingface_hub import ModelInfo, constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    response = get_session().get(
        f"{constants.ENDPOINT}/api/models",
        params=dict(wanted),
        headers=build_hf_headers(),
        timeout=constants.HF_HUB_ETAG_TIMEOUT,
    )
    hf_raise_for_status(response)
    return [ModelInfo(**row) for row in response.json()]
