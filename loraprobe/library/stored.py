"""What was read of adapters, stored in the cache under the hashes of what it follows from.

Each reading is a small JSON file of its own, written whole, so that any number of runs may share
them, and an interrupted run loses at most the adapter it was reading. What cannot be stored is read
again next time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraprobe._version import __version__
from loraprobe.adapters import Adapter, staged_file
from loraprobe.errors import OutputError
from loraprobe.file_hashes import cache_directory, cached_hash

FOLDER = "library"  # inside loraprobe's cache


def key_of(adapter: Adapter, sha256: str) -> str:
    """The hash of all that a reading depends on: weights, config and version."""
    return _digest([__version__, sha256, dict(adapter.config)])


def pair_key(one: str, other: str) -> str:
    """The hash under which the comparison of two readings is stored."""
    return _digest(sorted((one, other)))


def weights_hash(adapter: Adapter) -> str:
    """The sha256 of an adapter's weights file, cached between runs."""
    return adapter.sha256 if adapter.weights_file is None else cached_hash(adapter.weights_file)


def stored(key: str) -> Mapping[str, Any] | None:
    """What is stored under a key; None if there is nothing that can be read."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(_place(key).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return None


def store(key: str, reading: Mapping[str, Any]) -> None:
    """Stores a reading, whole or not at all; a cache that cannot be written is no error."""
    with contextlib.suppress(OutputError), staged_file(_place(key)) as file:
        file.write_text(json.dumps(reading), encoding="utf-8")


def _place(key: str) -> Path:
    return cache_directory() / FOLDER / f"{key}.json"


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
