"""Checks a base's config.json and the files of a tokenizer before a library reads them.

transformers builds as many modules as a config declares before it reads the weight files, so its
sizes are compared with theirs. The tokenizers library runs a normaliser that makes a text huge.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from loraprobe import untrusted
from loraprobe.errors import BaseError
from loraprobe.untrusted import DEEPEST, document_model, first_problem, nested_values, read_json

# The type of a value -> the keys that loraprobe reads and that have this type.
TYPES: Mapping[Any, str] = {
    str | None: "model_type",
    list[str] | None: "architectures",
    dict[str, Any] | None: "auto_map text_config quantization_config",
    bool | None: "tie_word_embeddings",
    int | None: "vocab_size",
}
BaseConfig = document_model("BaseConfig", TYPES)
LARGEST = 2**63  # every size and id of a model is smaller

LAYERS = frozenset({"num_hidden_layers", "num_layers", "n_layer", "n_layers"})
COUNTS = re.compile(r"(layers?|experts|heads?|blocks|groups)$")
SIZES = re.compile(r"(_size|_dim|_rank|n_embd|n_inner|d_model|d_ff|d_inner)$")
# Smaller numbers are not checked: building such a model is cheap, and loading it reports the error.
HARMLESS_COUNT, HARMLESS_SIZE = 1024, 1 << 20
PACKED = 8  # values that one stored number of a quantised file may hold
GROWTH = 1000  # the largest factor by which a normaliser may lengthen a text


class StoredTensor(Protocol):
    """A tensor in a weight file."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def check_types(config: Mapping[str, Any], reference: str) -> None:
    """Raises BaseError for a key of the wrong type, a number beyond 64 bits, or deep nesting."""
    problems = []
    try:
        BaseConfig.model_validate(config)
    except ValidationError as error:
        problems.append(f"has a wrong value ({first_problem(error)})")
    for key, value, depth in nested_values(config):
        if depth > DEEPEST:
            problems.append(f"nests {key} in more than {DEEPEST} levels")
        if isinstance(value, int) and abs(value) >= LARGEST:
            problems.append(f"sets {key} to {value!r:.60}, which is no size that a model has")
    if problems:
        raise BaseError(f"config.json of {reference} {problems[0]}; download it again.")


def check_sizes(
    config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], reference: str
) -> None:
    """Raises BaseError where a config declares far more than the weight files hold.

    The number of layers comes from the tensors' names. Other counts may not exceed the number of
    tensors and their longest side (experts may be stacked); sizes may not exceed the longest side.
    Both bounds allow for packed weights. Without tensors, a config that would build an immense
    model is refused.
    """
    if problem := next(_wrong_sizes(config, tensors), None):
        raise BaseError(f"config.json of {reference} {problem}; download the model again.")


def _wrong_sizes(config: Mapping[str, Any], tensors: Mapping[str, StoredTensor]) -> Iterator[str]:
    parts = (part for key in tensors for part in key.split(".") if len(part) < 9)
    layers = max((int(p) for p in parts if p.isascii() and p.isdigit()), default=-1) + 1
    side = PACKED * max((max(t.shape, default=1) for t in tensors.values()), default=1)
    most = max(HARMLESS_COUNT, side, len(tensors))
    for where, part in (("", config), ("text_config.", config.get("text_config") or {})):
        for key in LAYERS & part.keys():
            if layers and _is_number(part[key]) and part[key] > layers:
                yield (
                    f"declares {part[key]:,} layers ({where}{key}), and its weight files hold "
                    f"{layers:,}"
                )
    for key, value, _ in nested_values(config):
        name = key.rpartition(".")[2]
        counted = COUNTS.search(name) is not None
        allowed = most if counted else max(HARMLESS_SIZE, side)
        if _is_number(value) and value > allowed and (counted or SIZES.search(name)):
            yield (
                f"sets {key} to {value!r:.60}, and its weight files hold {len(tensors):,} "
                f"tensors of at most {side // PACKED:,} a side"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
)


def check_tokenizer(directory: Path, reference: str) -> dict[str, Any]:
    """Checks that the files of a tokenizer are JSON objects; returns tokenizer.json, {} without it.

    Raises BaseError, naming the file, for another file, and for a normaliser that lengthens a text
    too much. What else is wrong with them the tokenizers library says when it reads them.
    """
    files = {
        name: read_json(directory / name, reference, largest=untrusted.TOKENIZER)
        for name in TOKENIZER_FILES
        if (directory / name).is_file()
    }
    tokenizer = files.get("tokenizer.json", {})
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        if _growth(tokenizer.get(part)) > math.log(GROWTH):
            raise BaseError(
                f"The {part} in tokenizer.json of {reference} makes a text more than {GROWTH} "
                "times as long; save the tokenizer again."
            )
    return tokenizer


def tokenizer_size(directory: Path, reference: str) -> int | None:
    """One more than the largest token id of tokenizer.json; None if there is no id.

    Raises BaseError where its vocabulary is no list and no mapping to ids.
    """
    tokenizer = check_tokenizer(directory, reference)
    try:
        vocabulary = tokenizer.get("model", {}).get("vocab") or {}
        ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else [len(vocabulary) - 1]
        ids += [token["id"] for token in tokenizer.get("added_tokens") or ()]
        return max([-1, *ids]) + 1 or None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise BaseError(
            f"tokenizer.json of {reference} has no vocabulary of tokens with ids; save the "
            "tokenizer again."
        ) from None


def _growth(part: Any) -> float:
    """The logarithm of the largest factor by which all replacements may lengthen a text."""
    waiting, growth = [part], 0.0
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            waiting += value.values()
            if value.get("type") == "Replace" and isinstance(value.get("content"), str):
                growth += math.log(max(len(value["content"]), 1))
    return growth
