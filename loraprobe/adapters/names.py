"""Names: paths of modules, names of base models, and which of a directory's may be published.

A path of a module has an order, a layer and a kind. Two names of bases may mean one model.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable
from typing import Any, Literal

from loraprobe.secrets import public_text

# The names of layers with one row per token: embeddings and heads of language models.
VOCABULARY = frozenset(
    "embed_tokens wte embed_in word_embeddings shared lm_head embed_out output_layer".split()
)
LONGEST_NUMBER = 18  # digits; a longer number does not belong to a layer


def number_in(part: str) -> int | None:
    """The number in a part of a path, such as that of a layer; None if the part is no number.

    Digits of other scripts count; superscripts and very long numbers do not.
    """
    return int(part) if part.isdecimal() and len(part) <= LONGEST_NUMBER else None


@functools.lru_cache(maxsize=1 << 16)  # adapters of one base have the same paths
def natural(path: str) -> tuple[tuple[int, int | str], ...]:
    """A sort key in which layer 2 comes before layer 10."""
    parts = path.replace("[", ".").replace("]", "").split(".")  # that of an expert ends in [3]
    return tuple((1, p) if (n := number_in(p)) is None else (0, n) for p in parts)


@functools.lru_cache(maxsize=1 << 16)
def layer_pattern(path: str) -> str:
    """The path with `*` for its numbers: `model.layers.*.mlp.up_proj`, `mlp.experts[*]`."""
    path = re.sub(r"\[\d+\]$", "[*]", path)
    return ".".join(part if number_in(part) is None else "*" for part in path.split("."))


@functools.lru_cache(maxsize=1 << 16)
def root(path: str) -> str:
    """The part of a path before the number of its layer, or the whole path without a number."""
    return re.split(r"\.\d+(?:\.|$)", path, maxsplit=1)[0]


def layer_of(path: str) -> str:
    """A module's path up to its first number: model.layers.7; the whole path if it has none."""
    match = re.match(r"(?:.*?\.)??\d+(?=\.|$)", path)
    return match.group() if match else path


def kinds_of_modules(paths: Iterable[str]) -> tuple[str, ...]:
    """The kinds of modules among paths, by endings: q_proj, or attn.c_proj beside mlp.c_proj."""
    patterns = dict.fromkeys(map(layer_pattern, paths))
    kinds = []
    for pattern in patterns:
        parts = pattern.split(".")
        others = [other.split(".") for other in patterns if other != pattern]
        length = 1
        while length < len(parts) and any(o[-length:] == parts[-length:] for o in others):
            length += 1
        kinds.append(".".join(parts[-length:]))
    return tuple(kinds)


# Base models and directories.

# owner/name or name, with a revision; behind an owner also the folder that a reference may have.
_HUB_ID = re.compile(
    r"(?:\w[\w.-]*/\w[\w.-]*(?:@\w[\w./-]*)?(?::\w[\w./ -]*)?|\w[\w.-]*(?:@\w[\w./-]*)?)/?", re.A
)
_ABSOLUTE = re.compile(r"(?:/|~|file:|[A-Za-z]:[\\/]|\\\\)")
_HUB_CACHE = re.compile(r"[\\/]models--([\w.-]+?)(?:--([\w.-]+))?(?:[\\/]|$)", re.A)

QUANTISED = re.compile(
    r"[-_.](unsloth[-_.])?(bnb[-_]?)?"
    r"(4bit|8bit|int4|int8|fp8|nf4|gptq|awq|exl2|gguf|hqq|aqlm|bnb)(?![a-z])",
    re.I,
)

Relation = Literal["same", "unverified", "different"]


def is_path(reference: str) -> bool:
    """Whether a base's name is a path of a file system or a URL, not an id of the Hub.

    A relative path of two parts, such as models/base, looks like an id and counts as one.
    """
    return _HUB_ID.fullmatch(reference) is None


def relation(one: str, other: str) -> Relation:
    """Whether two names mean the same base model, as far as names can tell."""
    one, other = one.rstrip("/"), other.rstrip("/")
    if one == other:
        return "same"
    if is_path(one) or is_path(other):
        return "unverified"
    one, other = one.lower(), other.lower()
    if one == other:
        return "unverified"
    short, long = sorted((one, other), key=lambda name: "/" in name)
    if "/" not in short and long.rpartition("/")[2] == short:
        return "unverified"  # the Hub forwards old names without an owner, such as gpt2
    return "different"


def agreed_base(named: Iterable[str]) -> str | None:
    """The name of a base on which several agree, else None.

    A path agrees with its last part, by which what is written here names a local base.
    """
    names = sorted({name.rstrip("/") for name in named}, key=is_path)
    agree = names and all(one == public_name(names[-1]) for one in names[:-1])
    return names[-1] if agree else None


def unquantised(name: str) -> str:
    """A base's name without owner and marks of quantisation."""
    stripped = name.lower().rstrip("/").rpartition("/")[2]
    while (shorter := QUANTISED.sub("", stripped)) != stripped:
        stripped = shorter
    return stripped


def public_name(reference: str | None) -> str | None:
    """The name of a base that may be published: an id of the Hub, or the last part of a path.

    A path inside the Hub's cache gives the id that it was downloaded from. None for a path
    without a last part (such as / or ..), and for no name at all.
    """
    if not reference or not is_path(reference):
        return reference or None
    if cached := _HUB_CACHE.search(reference):
        return "/".join(part for part in cached.groups() if part)
    _, url, where = reference.strip().rpartition("://")
    if url:  # without its query, which may hold a token
        where = re.split(r"[?#]", where)[0]
    # A URL may hold a user name and password before the host.
    parts = re.split(r"[\\/:]", re.sub(r"^[^/\\]*@", "", where))
    return next((part for part in reversed(parts) if part.strip(" .~")), None)


def hub_id(reference: str) -> str | None:
    """The id on the Hub that a base's name is, or from which its path in the Hub's cache was
    downloaded; None for another path."""
    public = public_name(reference)
    return None if public is None or ("/" not in public and is_path(reference)) else public


def local_name(reference: str) -> str:
    """The last part of a directory's path, which may be published."""
    return os.path.basename(os.path.abspath(os.path.expanduser(reference))) or "adapter"


def public_value(value: Any) -> Any:
    """A value of a config without private parts: only the last part of each absolute path."""
    if isinstance(value, str):
        return public_name(value) if _ABSOLUTE.match(value) else public_text(value)
    if isinstance(value, dict):
        return {public_text(key): public_value(item) for key, item in value.items()}
    return [public_value(item) for item in value] if isinstance(value, list) else value
