"""The directory for data of later runs, and the hashes of files that are kept in it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import time
from pathlib import Path

READINGS = "library"  # the folder of what was read of adapters
FROM_FILES = ("hashes", READINGS)  # folders of what is computed again where it lacks


def cache_directory() -> Path:
    """The directory for data of later runs: LORAPROBE_CACHE, else inside the user's cache."""
    if own := os.environ.get("LORAPROBE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loraprobe"


def file_hash(file: Path) -> str:
    """The sha256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def hash_in_name(file: Path) -> str | None:
    """The sha256 in the name of a large file of the Hub's cache; None for another file."""
    blob = file.resolve()
    if blob.parent.name != "blobs" or not re.fullmatch(r"[0-9a-f]{64}", blob.name):
        return None
    from huggingface_hub.constants import HF_HUB_CACHE

    in_cache = blob.is_relative_to(Path(HF_HUB_CACHE).expanduser().resolve())
    return blob.name if in_cache else None


def cached_hash(file: Path) -> str:
    """`file_hash`, cached for a file that does not change.

    The Hub's cache names large files by their hash. Other hashes are stored in loraprobe's cache
    under path, size, times and inode. A change of the content changes ctime, which programs cannot
    set. A hash is not stored if the file changed in the last two seconds, because file systems may
    round times, and never on Windows, where ctime is the time of creation.
    """
    if known := hash_in_name(file):
        return known
    state = _state(file)
    stored = cache_directory() / "hashes" / hashlib.sha256(state.encode()).hexdigest()
    with contextlib.suppress(OSError, ValueError):
        kept = stored.read_text(encoding="ascii")
        if re.fullmatch("[0-9a-f]{64}", kept):
            return kept
    digest, settled = file_hash(file), time.time_ns() - file.stat().st_ctime_ns > 2e9
    if os.name != "nt" and settled and _state(file) == state:
        with contextlib.suppress(OSError):
            stored.parent.mkdir(parents=True, exist_ok=True)
            stored.write_text(digest, encoding="ascii")
    return digest


def _state(file: Path) -> str:
    """Path, size, times and inode of a file as a text, which changes with its content."""
    status = file.stat()
    times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
    return f"{file.resolve()} {status.st_size} {times} {status.st_ino}"
