"""Checks a base's config.json before a model is built from it.

Types are checked first, then sizes against the tensors of the weight files, because transformers
builds as many modules as the config declares before it reads the files.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from loraprobe.errors import BaseError
from loraprobe.json_types import wrong_types
from loraprobe.limits import DEEPEST, nested_values

# The keys that loraprobe reads, by the type of their values; null means the same as an absent key.
TYPES: dict[str, list[str]] = {
    "a text": ["model_type"],
    "a list of texts": ["architectures"],
    "an object": ["auto_map", "text_config", "quantization_config"],
    "true or false": ["tie_word_embeddings"],
    "a whole number": ["vocab_size"],
}
LARGEST = 2**63  # every size and id of a model is smaller

LAYERS = frozenset({"num_hidden_layers", "num_layers", "n_layer", "n_layers"})
COUNTS = re.compile(r"(layers?|experts|heads?|blocks|groups)$")
SIZES = re.compile(r"(_size|_dim|_rank|n_embd|n_inner|d_model|d_ff|d_inner)$")
# Smaller numbers are not checked: building such a model is cheap, and loading it reports the error.
HARMLESS_COUNT, HARMLESS_SIZE = 1024, 1 << 20
PACKED = 8  # values that one stored number of a quantised file may hold


class StoredTensor(Protocol):
    """A tensor in a weight file."""

    @property
    def shape(self) -> tuple[int, ...]: ...


def check_types(config: Mapping[str, Any], reference: str) -> None:
    """Raises BaseError for a key of the wrong type, a number beyond 64 bits, or deep nesting."""
    problems = [
        f"sets {key} to {_short(value)}, which must be {kind}"
        for key, value, kind in wrong_types(config, TYPES)
    ]
    for key, value, depth in nested_values(config):
        if depth > DEEPEST:
            problems.append(f"nests {key} in more than {DEEPEST} levels")
        if isinstance(value, int) and abs(value) >= LARGEST:
            problems.append(f"sets {key} to {_short(value)}, which is no size that a model has")
    if problems:
        raise BaseError(f"config.json of {reference} {problems[0]}; download it again.")


def check_sizes(
    config: Mapping[str, Any], tensors: Mapping[str, StoredTensor], reference: str
) -> None:
    """Raises BaseError where a config declares far more than the weight files hold.

    The number of layers comes from the tensors' names. Other counts may not exceed the number of
    tensors and their longest side (experts may be stacked); sizes may not exceed the longest side.
    Both bounds allow for packed weights.
    """
    if tensors and (problem := next(_wrong_sizes(config, tensors), None)):
        raise BaseError(f"config.json of {reference} {problem}; download the model again.")


def check_counts(config: Mapping[str, Any], reference: str) -> None:
    """Raises BaseError for a config without weights that would build an immense model."""
    for key, value, _ in nested_values(config):
        if COUNTS.search(key) and _is_number(value) and value > HARMLESS_COUNT:
            raise BaseError(f"config.json of {reference} sets {key} to {_short(value)}.")


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
                f"sets {key} to {_short(value)}, and its weight files hold {len(tensors):,} "
                f"tensors of at most {side // PACKED:,} a side"
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _short(value: Any) -> str:
    """A value for a message; of a very long number only the count of its digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        digits = int(math.log10(abs(value) or 1)) + 1
        return f"{value:,}" if digits < 30 else f"a number of {digits} digits"
    return f"{value!r:.60}"
