"""How a merge or a composition was made, as data in its card's front matter.

`loraprobe verify` makes the directory again from it. It holds no path of a machine: a local source
is recorded by the name of its directory and its sha256.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loraprobe._version import __version__
from loraprobe.adapters import Adapter, public_name
from loraprobe.checkpoint import check_link
from loraprobe.errors import AdapterError
from loraprobe.front_matter import read_front_matter
from loraprobe.limits import limits
from loraprobe.options import Options
from loraprobe.records import AdapterSummary, Audit, plain
from loraprobe.registry import spec_of
from loraprobe.routing.constant import ConstantGates
from loraprobe.secrets import scrub

if TYPE_CHECKING:
    from loraprobe.merging import Merged
    from loraprobe.pipeline.saved import Routed

KEY = "loraprobe"
SCHEMA = 2
CARD = "README.md"


class StrictModel(BaseModel):
    """Exactly these fields, of exactly these types, since a card may be other people's text."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class BaseRecord(StrictModel):
    """The base: a repository at a commit, or the name of a directory."""

    reference: str
    commit: str | None
    sha256: str | None


class SourceRecord(StrictModel):
    """An adapter: a reference to a repository at a commit, or the name of a directory."""

    name: str
    reference: str
    commit: str | None
    sha256: str


class ProvenanceRecord(StrictModel):
    """The fields that merges and compositions share."""

    schema_version: Literal[2]
    version: str
    torch: str
    allow: list[str]
    balance: Literal["none", "norm"]
    subtract: list[SourceRecord]
    base: BaseRecord | None
    sources: list[SourceRecord] = Field(min_length=1)


class MergeRecord(ProvenanceRecord):
    """Every choice that decides a merge."""

    method: str
    weights: list[float]
    space: str | None
    rank: Literal["auto"] | Annotated[int, Field(gt=0, lt=1 << 31)]
    dtype: Literal["float64", "float32", "bfloat16", "float16"]
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]


class CompositionRecord(ProvenanceRecord):
    """Every choice that decides a composition; `weights` are those of constant gates."""

    name: str
    router: str
    weights: list[float] | None


def merge_fields(merged: Merged, audit: Audit, options: Options) -> dict[str, Any]:
    """The front matter of a merge's card: the Hub's fields, and how the merge was made."""
    provenance = {
        **_common_fields(merged.sources, audit, options),
        "method": merged.spec,
        "weights": [float(weight) for weight in merged.weights],
        "space": None if merged.space == "factors" else merged.space,
        "rank": merged.asked_rank or "auto",
        "dtype": str(merged.adapter.dtype).removeprefix("torch."),
        "seed": merged.seed,
    }
    return _card_fields(merged.adapter.base_model, "merge", merged.license, provenance)


def composition_fields(made: Routed, audit: Audit, options: Options) -> dict[str, Any]:
    """The front matter of a composition's card."""
    from loraprobe.compatibility.licences import licence_of_merge

    experts, router = made.composition.experts, made.composition.router
    gates = router.weights if isinstance(router, ConstantGates) else None
    provenance = {
        **_common_fields([expert.summary() for expert in experts], audit, options),
        "name": made.composition.name,
        "router": router.name if isinstance(router, ConstantGates) else spec_of(router),
        "weights": None if gates is None else list(gates),
    }
    base_model = next((expert.base_model for expert in experts if expert.base_model), None)
    return _card_fields(base_model, "routing", licence_of_merge(made.licences), provenance)


def _common_fields(
    sources: Sequence[AdapterSummary], audit: Audit, options: Options
) -> dict[str, Any]:
    general = _loaded(options.subtract)
    return {
        "schema_version": SCHEMA,
        "version": __version__,
        "torch": str(torch.__version__),
        "allow": sorted(options.allow),
        "balance": options.balance,
        "subtract": [_source(adapter.summary()) for adapter in general],
        "base": plain(audit.base),
        "sources": [_source(source) for source in sources],
    }


def _source(summary: AdapterSummary) -> dict[str, Any]:
    return {key: getattr(summary, key) for key in SourceRecord.model_fields}


def _loaded(references: Sequence[Any]) -> list[Adapter]:
    """The adapters that were subtracted, loaded again for their hashes."""
    from loraprobe import hub

    return hub.load_all(references) if references else []


def _card_fields(
    base_model: str | None, kind: str, license: str | None, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "library_name": "peft" if kind == "merge" else "loraprobe",
        "pipeline_tag": "text-generation",
        "tags": ["lora", kind, "loraprobe"],
        "base_model": public_name(base_model),
        "license": license,
        KEY: provenance,
    }
    return {key: _scrubbed(value) for key, value in found.items() if value is not None}


def _scrubbed(value: Any) -> Any:
    """Plain data without access tokens in its texts."""
    if isinstance(value, str):
        return scrub(value)
    if isinstance(value, Mapping):
        return {key: _scrubbed(held) for key, held in value.items()}
    return [_scrubbed(held) for held in value] if isinstance(value, list) else value


def read_card_fields(directory: Path) -> Mapping[Any, Any]:
    """The front matter of a directory's card. Raises AdapterError where there is no card."""
    card = directory / CARD
    if not card.is_file():
        raise AdapterError(
            f"{directory} has no {CARD}; only what loraprobe wrote, with its card, can be verified."
        )
    check_link(card, str(directory), AdapterError)
    with card.open(encoding="utf-8", errors="replace") as stream:
        return read_front_matter(stream.read(limits().card))


def read_provenance(directory: Path) -> MergeRecord | CompositionRecord:
    """The provenance in a directory's card.

    Raises AdapterError if there is none, or if loraprobe would not write it.
    """
    found = read_card_fields(directory).get(KEY)
    if not isinstance(found, dict):
        raise AdapterError(
            f"The {CARD} of {directory} says nothing of a merge or a composition by "
            "loraprobe; only what loraprobe wrote, with its card, can be verified."
        )
    version = found.get("schema_version")
    if version != SCHEMA:
        raise AdapterError(
            f"The {CARD} of {directory} is of version {version!r:.20}, and this loraprobe reads "
            f"{SCHEMA}; verify it with the loraprobe that wrote it."
        )
    try:
        return (CompositionRecord if "router" in found else MergeRecord).model_validate(found)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise AdapterError(
            f"The {CARD} of {directory} says under {where!r:.80} what loraprobe "
            "never writes; only what loraprobe wrote can be verified."
        ) from None
