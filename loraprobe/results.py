"""Files of results with one line for each, which a later run goes on from.

The first line holds a fingerprint of everything on which the results depend. Every further line is
one row as JSON. Each batch is written and synchronised, so an interruption loses at most one. An
incomplete last line is dropped; any other damage is an error that names the file and the line.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from loraprobe.cache import cache_directory
from loraprobe.errors import OutputError, UsageError, unwritable
from loraprobe.records import plain

FORMAT = "loraprobe-results-3"
NAME = "results.jsonl"
FREE_CACHE = "free space there, or set LORAPROBE_CACHE to a directory of yours"
CURE = "remove the file, or start again without --resume."

Kept = TypeVar("Kept")


class JsonLines(Generic[Kept]):
    """Rows of one kind in a file that only one process at a time may use.

    path: None to keep nothing. resume: continue with the `rows` of the file; otherwise, and if
    there is no file, start empty. fingerprint: plain data. parse: a JSON value -> a row, or
    ValueError. Raises UsageError, which names the differences, if the file has another fingerprint;
    OutputError if it is damaged, in use, or cannot be read or written.
    """

    def __init__(
        self,
        path: Path | None,
        resume: bool,
        fingerprint: Mapping[str, Any],
        parse: Callable[[Any], Kept],
    ) -> None:
        self.path, self.rows = path, list[Kept]()
        self.fingerprint = known = as_plain(fingerprint)
        self._lock = None if path is None else locked(path)
        try:
            if path is not None and not (resume and self._read(path, known, parse)):
                _write(path, [{"format": FORMAT, "fingerprint": known}], "wb")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Release the file for other runs; `rows` stays readable."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def append(self, rows: Iterable[Any]) -> None:
        """Write rows (plain data) to the disk before returning: all of them, or none."""
        if self.path is not None:
            _write(self.path, rows, "ab")

    def _read(self, path: Path, fingerprint: Any, parse: Callable[[Any], Kept]) -> bool:
        """Load the rows and cut off an incomplete line. False if no line is complete."""
        known, self.rows, size = read_rows(path, parse)
        if not size:
            return False
        if changed := changes(known, fingerprint):
            raise UsageError(
                f"{path} holds results of another run ({'; '.join(changed[:3])}): {CURE}"
            )
        if size < path.stat().st_size:
            os.truncate(path, size)
        return True


def read_rows(path: Path, parse: Callable[[Any], Kept]) -> tuple[Any, list[Kept], int]:
    """The fingerprint of a file, which another run may be writing, its rows, and their bytes.

    An incomplete last line is left out. Raises OutputError if the file is damaged.
    """
    try:
        data = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise OutputError(f"{path} cannot be read ({error.strerror}):", CURE) from None
    head, *lines = data[: data.rfind(b"\n") + 1].split(b"\n")[:-1] or [b""]
    known, rows = _fingerprint(head), list[Kept]()
    if head and known is None:
        raise OutputError(f"{path} is no list of results of this loraprobe:", CURE)
    for number, line in enumerate(lines, 2):
        try:
            rows.append(parse(json.loads(line)))
        except (ValueError, RecursionError):
            raise OutputError(f"{path}, line {number} is damaged:", CURE) from None
    return known, rows, data.rfind(b"\n") + 1


def _write(path: Path, rows: Iterable[Any], mode: str) -> None:
    """Write rows as lines to the disk: all of them, or none."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    try:
        with open(path, mode, opener=_no_link) as file:
            start = file.tell()
            file.write("".join(lines).encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError, NameError):  # remove rows that were partly written
            os.truncate(path, start)
        raise unwritable(path, error, FREE_CACHE) from None


def read_fingerprint(path: Path) -> dict[str, Any] | None:
    """The fingerprint of a results file; None if the file is not a results file."""
    try:
        with path.open("rb") as file:
            return _fingerprint(file.readline())
    except OSError:
        return None


def changes(old: Any, new: Any, where: str = "") -> list[str]:
    """The differences between two fingerprints, a phrase each; long values are not shown."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            phrase
            for key in dict.fromkeys([*old, *new])
            for phrase in changes(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        ]
    if old == new:
        return []
    was, now = (json.dumps(value, ensure_ascii=False) for value in (old, new))
    short = len(was) < 24 and len(now) < 24
    return [f"{where} was {was}, is {now}" if short else f"{where} changed"]


def as_plain(fingerprint: Mapping[str, Any]) -> Any:
    """A fingerprint as it is after a round trip through JSON."""
    return json.loads(json.dumps(plain(dict(fingerprint)), default=str))


def digest(value: Any) -> str:
    """A short name for plain data, equal for equal data."""
    text = json.dumps(as_plain({"": value}), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _fingerprint(head: bytes) -> dict[str, Any] | None:
    """The fingerprint in the first line; None if the line is not a header."""
    try:
        header = json.loads(head)
        return dict(header["fingerprint"]) if header["format"] == FORMAT else None
    except (ValueError, RecursionError, KeyError, TypeError):
        return None


def locked(path: Path) -> Any:
    """The lock on a results file, to be released. A link in its place is refused.

    The operating system releases it when the process ends. A file system may have no locks. Raises
    OutputError if another run holds the lock.
    """
    import filelock

    lock = filelock.FileLock(path.with_suffix(".lock"), thread_local=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise OutputError(
            f"{path} is in use by another run of the same call:",
            "wait for it, or set LORAPROBE_CACHE to another directory.",
        ) from None
    except NotImplementedError:  # this file system has none
        pass
    except OSError as error:
        raise unwritable(path, error, FREE_CACHE) from None
    return lock


def _no_link(path: str, flags: int) -> int:
    """Opens a file that is not a symbolic link, which might lead to a file of somebody else."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def names_in(fingerprint: Mapping[str, Any], key: str) -> list[str]:
    """The names of the adapters or the tasks of a fingerprint."""
    held = fingerprint.get(key)
    return sorted(held) if isinstance(held, dict) else []


def kept_files() -> list[Path]:
    """The files of all runs whose results are kept."""
    return sorted((cache_directory() / "runs").glob(f"*/{NAME}"))
