"""Module paths: their order, their layers, their kinds, and what repeats in every layer."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

# The names of layers with one row per token: embeddings and heads of language models.
VOCABULARY = frozenset(
    "embed_tokens wte embed_in word_embeddings shared lm_head embed_out output_layer".split()
)
LONGEST_NUMBER = 18  # digits; a longer number does not belong to a layer


def number(part: str) -> int | None:
    """The number in a part of a path, such as that of a layer; None if the part is no number.

    Digits of other scripts count; superscripts and very long numbers do not.
    """
    return int(part) if part.isdecimal() and len(part) <= LONGEST_NUMBER else None


@functools.lru_cache(maxsize=1 << 16)  # adapters of one base have the same paths
def natural(path: str) -> tuple[tuple[int, int | str], ...]:
    """A sort key in which layer 2 comes before layer 10."""
    parts = path.replace("[", ".").replace("]", "").split(".")  # that of an expert ends in [3]
    return tuple((1, p) if (n := number(p)) is None else (0, n) for p in parts)


@functools.lru_cache(maxsize=1 << 16)
def layer_pattern(path: str) -> str:
    """The path with `*` for its numbers: `model.layers.*.mlp.up_proj`, `mlp.experts[*]`."""
    path = re.sub(r"\[\d+\]$", "[*]", path)
    return ".".join(part if number(part) is None else "*" for part in path.split("."))


@functools.lru_cache(maxsize=1 << 16)
def root(path: str) -> str:
    """The part of a path before the number of its layer, or the whole path without a number."""
    return re.split(r"\.\d+(?:\.|$)", path, maxsplit=1)[0]


def kinds_of_modules(paths: Iterable[str]) -> tuple[str, ...]:
    """The kinds of modules among paths, by endings: q_proj, or attn.c_proj beside mlp.c_proj."""
    patterns = dict.fromkeys(map(layer_pattern, paths))
    found = []
    for pattern in patterns:
        parts = pattern.split(".")
        others = [other.split(".") for other in patterns if other != pattern]
        length = 1
        while length < len(parts) and any(o[-length:] == parts[-length:] for o in others):
            length += 1
        found.append(".".join(parts[-length:]))
    return tuple(found)
