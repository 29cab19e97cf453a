"""How a merge was made, as data in its model card's front matter, so that it can be made again."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from loraprobe._version import __version__
from loraprobe.adapter import Adapter
from loraprobe.errors import AdapterError
from loraprobe.options import Options
from loraprobe.records import Audit

if TYPE_CHECKING:
    from loraprobe.merging import Merged

KEY = "loraprobe"
SCHEMA = 1
CARD = "README.md"
FRONT_MATTER = re.compile(r"---\n(.*?)^---$", re.DOTALL | re.MULTILINE)


def provenance_of(merged: Merged, audit: Audit, options: Options) -> dict[str, Any]:
    """Plain data: sources with commit and sha256, and every choice that decides the result."""
    base = audit.base
    return {
        "schema_version": SCHEMA,
        "version": __version__,
        "torch": str(torch.__version__),
        "method": merged.spec,
        "weights": [float(weight) for weight in merged.weights],
        "space": None if merged.space == "factors" else merged.space,
        "rank": merged.asked_rank or "auto",
        "dtype": str(merged.adapter.dtype).removeprefix("torch."),
        "seed": merged.seed,
        "allow": sorted(options.allow),
        "balance": options.balance,
        "subtract": [_reference(ref) for ref in options.subtract],
        "base": {"reference": base.reference, "commit": base.commit} if base else None,
        "sources": [
            {
                "name": source.name,
                "reference": source.reference,
                "commit": source.commit,
                "sha256": source.sha256,
            }
            for source in merged.sources
        ],
    }


def read_provenance(directory: Path) -> Mapping[str, Any]:
    """The provenance in a directory's card. Raises AdapterError where there is none, or where an
    entry is not of the kind that `provenance_of` writes: cards are strangers' texts too."""
    import yaml

    card = directory / CARD
    cure = "only what loraprobe merged, with its card, can be verified."
    if not card.is_file():
        raise AdapterError(f"{directory} has no {CARD}; {cure}")
    text = card.read_text(encoding="utf-8", errors="replace")
    front = FRONT_MATTER.match(text)
    try:
        matter = yaml.safe_load(front[1]) if front else None
    except (yaml.YAMLError, ValueError, RecursionError):
        matter = None
    found = matter.get(KEY) if isinstance(matter, dict) else None
    if not isinstance(found, dict) or not isinstance(found.get("sources"), list):
        raise AdapterError(f"The {CARD} of {directory} says nothing of a merge by loraprobe; "
                           f"{cure}")  # fmt: skip
    if found.get("schema_version") != SCHEMA:
        raise AdapterError(f"The {CARD} of {directory} was written by loraprobe "
                           f"{found.get('version')} in a form this one does not know; use that "
                           "version.")  # fmt: skip
    wrong = [key for key, is_sound in SOUND.items() if not is_sound(found.get(key))]
    if wrong:
        raise AdapterError(f"The {CARD} of {directory} says of its merge, under {wrong[0]!r}, what "
                           f"loraprobe never writes; {cure}")  # fmt: skip
    return found


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return real and abs(value) <= sys.float_info.max


def _pinned(value: Any) -> bool:
    """A reference, and the commit it was taken from if it was on the Hub."""
    if not isinstance(value, dict):
        return False
    return _text(value.get("reference")) and (value.get("commit") is None or _text(value["commit"]))


def _source(value: Any) -> bool:
    return _pinned(value) and _text(value.get("name")) and _text(value.get("sha256"))


SOUND: Mapping[str, Callable[[Any], bool]] = {
    "method": _text,
    "weights": lambda v: v is None or (isinstance(v, list) and all(map(_number, v))),
    "space": lambda v: v is None or _text(v),
    "rank": lambda v: v == "auto" or (_whole(v) and 0 < v < 1 << 31),
    "dtype": _text,
    "seed": _whole,
    "allow": _texts,
    "balance": _text,
    "subtract": _texts,
    "base": lambda v: v is None or _pinned(v),
    "sources": lambda v: bool(v) and all(map(_source, v)),
}


def _reference(ref: Any) -> str:
    return ref.source.reference if isinstance(ref, Adapter) else str(ref)
