"""Searches the Hub for adapters of a base model, and tells whether two names are one base model.

Nothing is downloaded but descriptions. Two names are one base if the Hub redirects one to the
other, if a card calls one a quantised copy of the other (`base_model` with
`base_model_relation: quantized`), or if their weight files have equal sha256. Where the Hub cannot
be asked there is no proof, which is no error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from loraprobe.adapters import Adapter
from loraprobe.adapters.names import is_path, unquantised
from loraprobe.errors import BadReference, HubError
from loraprobe.findings import finding
from loraprobe.hub.client import endpoint, explain, is_offline, quiet_client
from loraprobe.hub.reference import Reference

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

LONGEST_CHAIN = 4  # redirects and quantised copies of copies
QUANTISED_TAG = "base_model:quantized:"  # what the Hub itself concludes from a card
WEIGHTS = (".safetensors", ".bin", ".gguf")
MOST_COPIES = 8  # whose adapters `find` lists


def one_base(adapters: Sequence[Adapter], base: str | None = None) -> list[Adapter]:
    """The adapters, those of proven copies with one name of their base and a note `same-base`.

    base: the name of the base that is used, if it is on the Hub; without one it is the original of
    the first adapter's. Adapters that already name one base are returned as they are.
    """
    named = [a.base_model for a in adapters if a.base_model]
    names = [n for n in dict.fromkeys([*([base] if base else []), *named]) if not is_path(n)]
    if len(names) < 2 or is_offline():
        return list(adapters)
    proofs: dict[str, str] = {}  # name -> why it is the same base, where it is
    try:
        common = base or original_of(names[0])[0]
        for name in names:
            if name != common and (proof := same_base(name, common)):
                proofs[name] = proof
    except Exception:  # no network, a missing or a private repository: nothing is proven
        return list(adapters)
    if len(proofs) + (common in names) < 2:  # no other name leads there
        return list(adapters)
    renamed = []
    for adapter in adapters:
        if adapter.base_model in proofs:
            message = (
                f"{adapter.name} was trained on {adapter.base_model}, which is {common}: "
                f"{proofs[adapter.base_model]}"
            )
            note = finding("same-base", (adapter.name,), message)
            adapter = replace(adapter, base_model=common, issues=(*adapter.issues, note))
        renamed.append(adapter)
    return renamed


def original_of(name: str) -> tuple[str, list[str]]:
    """The original of a base by redirects and by the cards of quantised copies, and the proofs.

    Raises what the Hub's client raises.
    """
    proofs: list[str] = []
    for _ in range(LONGEST_CHAIN):
        info = _described(name, endpoint())
        if info.id != name:
            proofs.append(f"the Hub redirects {name} to {info.id}.")
            name = info.id
        source = _quantised_from(info)
        if source is None or source == name:
            break
        proofs.append(f"the card of {name} says that it is a quantised copy of {source}.")
        name = source
    return name, proofs


def same_base(one: str, other: str) -> str | None:
    """The proofs that two names lead to one base, in sentences; None without a proof."""
    (ours, steps), (theirs, more) = original_of(one), original_of(other)
    if ours != theirs:
        sums = _weights(ours, endpoint())
        if not sums or sums != _weights(theirs, endpoint()):
            return None
        more = [*more, f"the weight files of {ours} and {theirs} have the same sha256."]
    return " ".join(dict.fromkeys([*steps, *more]))


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


@lru_cache(maxsize=256)
def _described(name: str, hub: str) -> ModelInfo:
    """What the Hub at an address tells about a repository, after a redirect about its new name."""
    from huggingface_hub import HfApi, constants

    with quiet_client():
        return HfApi().model_info(name, timeout=constants.HF_HUB_ETAG_TIMEOUT)


@lru_cache(maxsize=256)
def _weights(name: str, hub: str) -> frozenset[str]:
    """The sha256 of the weight files of a repository, from the tree of its main revision."""
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with quiet_client():
        files = [f for f in HfApi().list_repo_tree(name) if isinstance(f, RepoFile) and f.lfs]
    for ending in WEIGHTS:
        if sums := frozenset(f.lfs.sha256 for f in files if f.lfs and f.path.endswith(ending)):
            return sums
    return frozenset()


def _quantised_from(info: ModelInfo) -> str | None:
    """The base that a card calls the original of this quantised copy."""
    card = info.card_data.to_dict() if info.card_data is not None else {}
    sources = card.get("base_model")
    sources = [sources] if isinstance(sources, str) else sources
    if card.get("base_model_relation") == "quantized" and isinstance(sources, list):
        return sources[0] if len(sources) == 1 and isinstance(sources[0], str) else None
    tags = [tag for tag in info.tags or () if tag.startswith(QUANTISED_TAG)]
    return tags[0].removeprefix(QUANTISED_TAG) if len(tags) == 1 else None


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
