"""The directory for data of later runs, and the hashes of files that are kept in it."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import stat
import sys
import tempfile
import time
from pathlib import Path

READINGS = "library"  # the folder of what was read of adapters
HASHES, KEY = "hashes", "key"  # the folder of hashes of files, and the key by which they are signed
VERDICTS = "verdicts"  # the folder of what was decided of compositions
FROM_FILES = (HASHES, READINGS)  # folders of what is computed again where it lacks


def cache_directory() -> Path:
    """The directory for data of later runs: LORAPROBE_CACHE, else inside the user's cache.

    Earlier versions had it in ~/.cache on every system. One that is still there is used.
    """
    if own := os.environ.get("LORAPROBE_CACHE"):
        return Path(own)
    place, earlier = usual_directory(), Path.home() / ".cache" / "loraprobe"
    return earlier if earlier.is_dir() and not place.exists() else place


def usual_directory() -> Path:
    """Where people look for caches: XDG_CACHE_HOME, else what the system has for them."""
    if (given := os.environ.get("XDG_CACHE_HOME")) or sys.platform not in ("darwin", "win32"):
        return Path(given or Path.home() / ".cache") / "loraprobe"
    from platformdirs import user_cache_path

    return user_cache_path("loraprobe", appauthor=False)


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
    under path, size, times and inode, with a code that only the user's key gives: a hash that
    somebody put there is not believed. A change of the content changes ctime, which programs cannot
    set. A hash is not stored if the file changed in the last two seconds, because file systems may
    round times, and never on Windows, where ctime is the time of creation.
    """
    if known := hash_in_name(file):
        return known
    state, key = _state(file), _key()
    name = hashlib.sha256(state.encode()).hexdigest()
    if key is not None and (kept := read_kept(HASHES, name)) is not None:
        digest = kept[:64].decode("ascii", "replace")
        if hmac.compare_digest(kept, _signed(digest, state, key)):
            return digest
    digest, settled = file_hash(file), time.time_ns() - file.stat().st_ctime_ns > 2e9
    if os.name != "nt" and settled and _state(file) == state:
        if key is None:
            keep("", KEY, os.urandom(32))  # with the permissions of a temporary file, 0600
            key = _key()
        if key is not None:
            keep(HASHES, name, _signed(digest, state, key))
    return digest


def _signed(digest: str, state: str, key: bytes) -> bytes:
    """A hash and the code that the key gives for it and the state of its file."""
    return f"{digest} {hmac.new(key, f'{digest} {state}'.encode(), 'sha256').hexdigest()}".encode()


def _key() -> bytes | None:
    """The user's key of the cache; None where there is none that only the user can have written."""
    with contextlib.suppress(OSError):
        status = (cache_directory() / KEY).lstat()
        if os.name != "nt" and status.st_uid == os.geteuid() and not status.st_mode & 0o077:
            held = read_kept("", KEY)
            return held if held is not None and len(held) == 32 else None
    return None


def read_kept(folder: str, name: str) -> bytes | None:
    """The content of a file in a folder of the cache; None without one, and for a link."""
    place = cache_directory() / folder
    with contextlib.suppress(OSError):
        if not (folder and place.is_symlink()) and stat.S_ISREG((place / name).lstat().st_mode):
            return (place / name).read_bytes()
    return None


def keep(folder: str, name: str, content: bytes) -> None:
    """Stores a file in a folder of the cache, whole or not at all.

    A link of its name is replaced, and nothing is stored in a folder that is a link. A cache that
    cannot be written is no error.
    """
    place = cache_directory() / folder
    with contextlib.suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        if folder and place.is_symlink():
            return
        with tempfile.NamedTemporaryFile(dir=place, delete=False) as file:
            file.write(content)
        try:
            os.replace(file.name, place / name)
        except OSError:
            os.unlink(file.name)


def _state(file: Path) -> str:
    """Path, size, times and inode of a file as a text, which changes with its content."""
    status = file.stat()
    times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
    return f"{file.resolve()} {status.st_size} {times} {status.st_ino}"
