"""Removes tokens, passwords and private paths from texts that loraprobe writes."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN", "OPENAI_API_KEY")
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{6,}")
_IN_ADDRESS = re.compile(r"(?<=://)[^/\s@]+@")
HIDDEN = "***"


def scrub(text: str) -> str:
    """A text without access tokens and without the user:password@ of an address."""
    for name in VARIABLES:
        secret = os.environ.get(name, "").strip()
        if len(secret) > 3:
            text = text.replace(secret, HIDDEN)
    return _IN_ADDRESS.sub(f"{HIDDEN}@", _TOKEN.sub(HIDDEN, text))


# An absolute path of two parts or more: /a/b, ~/a, file:///a/b, C:\\a\\b. URLs do not match.
_PATH = re.compile(
    r"(?<![\w.~/\\-])(?!(?<=:)//)(?:file:(?=/)|~[\w-]*(?=/)|(?=/+[^\s/]+/))"
    r"(?:/+([^\s/'\"`,;:()<>|\[\]]+))+/*"
    r"|\b[A-Za-z]:(?:[\\/]+([^\s\\/'\"`,;:()<>|\[\]]+))+[\\/]*"
)


def public_text(text: str, names: Mapping[str, str] = {}) -> str:
    """A text without tokens, and with only the last part of each absolute path.

    names: private text, such as a path with spaces -> its replacement.
    """
    for private in sorted(names, key=len, reverse=True):
        if private in text and private != names[private]:
            known = names[private].replace("\\", r"\\")
            text = re.sub(rf"(?<![\w/.-]){re.escape(private)}(?![\w-])", known, text)
    text = _PATH.sub(lambda found: found[1] or found[2], text)
    home = str(Path.home())
    return scrub(text.replace(home, "~") if len(home) > 1 else text)


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Plain data (records, mappings, lists, tuples) with `change` applied to every text in it.

    Keys of mappings count as texts, names of fields do not.
    """
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {map_texts(key, change): map_texts(held, change) for key, held in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map_texts(held, change) for held in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        changed = {name: map_texts(getattr(value, name), change) for name in names}
        return dataclasses.replace(value, **changed)
    return value
