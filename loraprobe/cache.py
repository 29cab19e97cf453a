"""The directory of the cache, and the runs whose results it keeps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loraprobe.errors import LoraprobeError
from loraprobe.results import NAME, locked, names_in, read_fingerprint

READINGS = "library"  # the folder of what was read of adapters
FROM_FILES = ("hashes", READINGS)  # folders of what is computed again where it lacks


def cache_directory() -> Path:
    """The directory for data of later runs: LORAPROBE_CACHE, else inside the user's cache."""
    if own := os.environ.get("LORAPROBE_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "loraprobe"


@dataclass(frozen=True)
class KeptRun:
    """The results of one run, which the same call with --resume uses.

    `used` is the time of the last result in seconds since 1970.
    """

    place: Path
    adapters: tuple[str, ...]
    tasks: tuple[str, ...]
    size: int
    used: float


def kept_runs() -> list[KeptRun]:
    """All runs whose results are kept, the latest first."""
    runs = map(_run, (cache_directory() / "runs").glob(f"*/{NAME}"))
    return sorted(runs, key=lambda run: -run.used)


def readings_size() -> int:
    """Bytes of the hashes of files, and of what `screen` read of adapters."""
    return sum(_size(cache_directory() / name) for name in FROM_FILES)


def clear_kept(runs: Sequence[KeptRun], readings: bool = True) -> list[KeptRun]:
    """Deletes runs; returns those that are in use, which stay.

    readings: also the hashes and readings of files.
    """
    left = []
    for run in runs:
        try:
            locked(run.place / NAME).release()
        except LoraprobeError:
            left.append(run)
            continue
        shutil.rmtree(run.place, ignore_errors=True)
    for name in FROM_FILES if readings else ():
        shutil.rmtree(cache_directory() / name, ignore_errors=True)
    return left


def _run(file: Path) -> KeptRun:
    fingerprint = read_fingerprint(file) or {}
    adapters, tasks = (tuple(names_in(fingerprint, key)) for key in ("adapters", "tasks"))
    return KeptRun(file.parent, adapters, tasks, _size(file.parent), file.stat().st_mtime)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
