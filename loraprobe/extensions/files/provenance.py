"""What the card of a merge, a composition or a full model says of how it was made, checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from loraprobe.errors import AdapterError
from loraprobe.front_matter import KEY, read_front_matter
from loraprobe.hub import read_card
from loraprobe.report.cards import CARD, SCHEMA

BY_WEIGHTS = "compare its weights with what it was made of: add --base=REF and --of=ADAPTER"


class StrictModel(BaseModel):
    """Exactly these fields with exactly these types, because a card is untrusted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class PromptFile(StrictModel):
    """A file from which a router learned: the places of each adapter's prompts in it, from 0.

    fields: how a task is read (--fields); None for a file with a prompt a line.
    """

    file: Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f]+$", max_length=255)]
    sha256: str
    fields: str | None
    places: dict[str, list[Annotated[int, Field(ge=0)]]]


class LearnedRecord(StrictModel):
    """How a router read the prompts from which it learned, and where these stand.

    chat: whether they were user turns of the chat template. dtype: that of the base.
    """

    chat: bool
    dtype: Literal["float32", "bfloat16", "float16"]
    files: list[PromptFile]


class BaseRecord(StrictModel):
    """The origin of the base: a repository at a commit, or the name of a directory."""

    reference: str
    commit: str | None
    sha256: str | None


class SourceRecord(BaseRecord):
    """An adapter, under the name that it had in the merge or the composition."""

    name: str
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
    layers: dict[str, list[float]] = Field(default_factory=dict)  # weights of single layers


class MergeRecord(ProvenanceRecord):
    """Every choice that decides a merge."""

    method: str
    weights: list[float]
    space: str | None
    rank: Literal["auto"] | Annotated[int, Field(gt=0, lt=1 << 31)]
    rank_layout: Literal["portable"]  # earlier versions had another one
    full_model: bool = False
    dtype: Literal["float64", "float32", "bfloat16", "float16"]
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]


class CompositionRecord(ProvenanceRecord):
    """Every choice that decides a composition; `weights` are those of constant gates.

    learned: None for a router that learned nothing, or from prompts that no file holds.
    """

    name: str
    router: str
    weights: list[float] | None
    learned: LearnedRecord | None = None


def read_card_fields(directory: Path) -> Mapping[Any, Any]:
    """The front matter of a directory's card. Raises AdapterError where there is no card."""
    text = read_card(directory / CARD, str(directory), AdapterError)
    if text is None:
        raise AdapterError(
            f"{directory} has no {CARD}, and so no recipe by loraprobe; {BY_WEIGHTS}."
        )
    return read_front_matter(text)


def read_provenance(directory: Path) -> MergeRecord | CompositionRecord:
    """The provenance in a directory's card.

    Raises AdapterError if there is none, or if loraprobe would not write it.
    """
    found = read_card_fields(directory).get(KEY)
    if not isinstance(found, dict) or found.get("sources") == []:
        raise AdapterError(
            f"The {CARD} of {directory} says nothing of a merge or a composition by loraprobe; "
            f"{BY_WEIGHTS}."
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
