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
# TOKEN@ or USER:PASSWORD@ behind a scheme, whose slashes pathlib may have joined. A password may
# hold / and @; digits and a slash behind the colon are a port.
_IN_ADDRESS = re.compile(r"(?<=[a-z]:/)(/?)(?:[^/\s@:]+:(?!\d+/)[^\s'\"]{0,200}|[^/\s@]+)@")
_IN_QUERY = re.compile(
    r"(?i)([?&][\w-]*(?:token|key|password|passwd|secret|signature|sig|auth)=)[^&#\s'\"]+"
)
HIDDEN = "***"


def _secrets() -> list[str]:
    """The keys of the environment, the longest first: whole, by line, and as a repr has them."""
    forms = set[str]()
    for name in VARIABLES:
        whole = os.environ.get(name, "").strip()
        for secret in (whole, *whole.split()):
            sent = repr(secret.encode("utf-8", "surrogateescape"))[2:-1]
            forms |= {secret, repr(secret)[1:-1], ascii(secret)[1:-1], sent}
    return sorted((one for one in forms if len(one) > 3), key=len, reverse=True)


def scrub(text: str) -> str:
    """A text without access tokens, and addresses without user:password@ and keys in a query."""
    for secret in _secrets():
        text = text.replace(secret, HIDDEN)
    text = _IN_ADDRESS.sub(rf"\1{HIDDEN}@", _TOKEN.sub(HIDDEN, text))
    return _IN_QUERY.sub(rf"\1{HIDDEN}", text)


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
    text = scrub(text)
    for given in sorted(names, key=len, reverse=True):
        private = scrub(given) if HIDDEN in text else given
        if private in text and private != names[given]:
            known = names[given].replace("\\", r"\\")
            text = re.sub(rf"(?<![\w/.-]){re.escape(private)}(?![\w-])", known, text)
    home = str(Path.home())
    text = text.replace(home, "~") if len(home) > 1 else text
    return scrub(_PATH.sub(lambda found: found[1] or found[2], text))


def map_texts(value: Any, change: Callable[[Any], Any], kind: type = str) -> Any:
    """Plain data (records, mappings, lists, tuples) with `change` applied to every text in it.

    Keys of mappings count as texts, names of fields do not. A text that does not change keeps its
    type, such as `ItemPart`. kind: what is changed in place of texts.
    """
    if isinstance(value, kind):
        changed = change(value)
        return value if changed == value else changed
    if isinstance(value, Mapping):
        rows = value.items()
        return {map_texts(k, change, kind): map_texts(item, change, kind) for k, item in rows}
    if isinstance(value, (list, tuple)):
        return type(value)(map_texts(item, change, kind) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        fields = {name: map_texts(getattr(value, name), change, kind) for name in names}
        return dataclasses.replace(value, **fields)
    return value
