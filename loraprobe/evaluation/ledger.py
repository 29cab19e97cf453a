"""An append-only list of results on disk, so that an interruption costs one batch.

The first line holds a fingerprint of what the results depend on (adapters, base, tasks,
settings); every further line is one `ItemResult` as JSON. A batch is written at once and flushed
to the disk. A last line that an interruption cut short is dropped; any other damage is an error.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from loraprobe.errors import OutputError, UsageError
from loraprobe.records import ItemResult, plain

FORMAT = "loraprobe-results-1"
NAME = "results.jsonl"

Key = tuple[str, str, str, str]  # system, task, part, item


class Ledger:
    """Results as they come, of this run and of the one that it resumes.

    path: a .jsonl file, or a directory in which `results.jsonl` is kept, or None for memory alone.
    resume: go on with what is there (or begin, where there is nothing); otherwise an existing
    file is an OutputError, unless `overwrite`. fingerprint: plain data; resuming results with
    another one is a UsageError that names what differs.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        resume: bool = False,
        *,
        fingerprint: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path = None if path is None else Path(path)
        if self.path is not None and self.path.suffix != ".jsonl":
            self.path = self.path / NAME
        self.fingerprint = json.loads(json.dumps(plain(dict(fingerprint or {})), default=str))
        self._results: dict[Key, ItemResult] = {}
        self._lock: IO[bytes] | None = None
        if self.path is not None:
            self._lock = _locked(self.path)
            self._open(self.path, resume, overwrite)

    def close(self) -> None:
        """Lets another run use the file; what was read stays readable."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __del__(self) -> None:
        if getattr(self, "_lock", None) is not None:
            self.close()

    def append(self, results: Iterable[ItemResult]) -> None:
        """Keep a batch: written, flushed and synchronised before it returns."""
        batch = list(results)
        if self.path is not None and batch:
            lines = (json.dumps(dataclasses.asdict(r), ensure_ascii=False) for r in batch)
            self._write("".join(line + "\n" for line in lines), "ab")
        self._results.update({_key(result): result for result in batch})

    def get(self, system: str, task: str, part: str, item: str) -> ItemResult | None:
        """One result, or None if it is not there yet."""
        return self._results.get((system, task, part, item))

    def __iter__(self) -> Iterator[ItemResult]:
        return iter(self._results.values())

    def __len__(self) -> int:
        return len(self._results)

    def _open(self, path: Path, resume: bool, overwrite: bool) -> None:
        if path.exists() and path.stat().st_size and not overwrite:
            if not resume:
                raise OutputError(f"{path} holds results already: go on with --resume, or start "
                                  "again with --overwrite.")  # fmt: skip
            if self._read(path):
                return
        head = {"format": FORMAT, "fingerprint": self.fingerprint}
        self._write(json.dumps(head, ensure_ascii=False) + "\n", "wb")

    def _read(self, path: Path) -> bool:
        """Load what is there and cut off a line without its end. False if no line is whole."""
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if not whole:
            return False
        head, *rows = whole.split(b"\n")[:-1]
        self._check(path, head)
        for number, row in enumerate(rows, 2):
            try:
                result = ItemResult(**json.loads(row))
            except (ValueError, TypeError):
                raise OutputError(f"{path}, line {number} is damaged: remove the file, or start "
                                  "again with --overwrite.") from None  # fmt: skip
            self._results[_key(result)] = result
        if len(whole) < len(data):
            os.truncate(path, len(whole))
        return True

    def _check(self, path: Path, head: bytes) -> None:
        try:
            header = json.loads(head)
            form, found = header["format"], header["fingerprint"]
        except (ValueError, TypeError, KeyError):
            form, found = None, {}
        if form != FORMAT:
            raise OutputError(f"{path} is no list of results of this version of loraprobe: choose "
                              "another directory, or start again with --overwrite.")  # fmt: skip
        changes = list(_changes("", found, self.fingerprint))
        if changes:
            raise UsageError(f"{path} holds results of another run ({'; '.join(changes[:3])}): "
                             "repeat that run's arguments, or leave out --resume.")  # fmt: skip

    def _write(self, text: str, mode: str) -> None:
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, mode) as file:
                file.write(text.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error.strerror}.") from None


def _locked(path: Path) -> IO[bytes] | None:
    """A lock on a list of results, held as long as the file that is returned stays open.

    The system gives it back when the process ends, however it ends. None where there are no such
    locks (Windows). Raises OutputError where another run holds it.
    """
    try:
        import fcntl
    except ImportError:
        return None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = open(path.with_suffix(".lock"), "wb")  # noqa: SIM115 - held, not read
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return None  # a file system without locks
        raise OutputError(f"{path} is in use by another run of the same call: wait for it, or set "
                          "LORAPROBE_CACHE to another directory.") from None  # fmt: skip
    return lock


def _key(result: ItemResult) -> Key:
    return result.system, result.task, result.part, result.item


def _changes(where: str, old: Any, new: Any) -> Iterator[str]:
    """What differs between two fingerprints, a phrase each."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in dict.fromkeys([*old, *new]):
            yield from _changes(f"{where}.{key}" if where else key, old.get(key), new.get(key))
    elif old != new:
        yield f"{where or 'fingerprint'} was {_short(old)}, is {_short(new)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
