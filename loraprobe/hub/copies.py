"""Tells whether two names are one base model, as the Hub describes it.

Nothing is downloaded but descriptions. Two names are one base if the Hub redirects one to the
other, if a card calls one a quantised copy of the other (`base_model` with
`base_model_relation: quantized`), or if their weight files have equal sha256. Where the Hub cannot
be asked there is no proof, which is no error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from loraprobe.adapters import Adapter
from loraprobe.adapters.names import is_path
from loraprobe.findings import finding
from loraprobe.hub.client import endpoint, is_offline, quiet_client

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

LONGEST_CHAIN = 4  # redirects and quantised copies of copies
QUANTISED_TAG = "base_model:quantized:"  # what the Hub itself concludes from a card
WEIGHTS = (".safetensors", ".bin", ".gguf")


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
