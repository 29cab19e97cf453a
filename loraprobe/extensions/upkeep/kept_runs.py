"""The runs whose results are kept for --resume: how they are listed and deleted."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loraprobe.cache import FROM_FILES, VERDICTS, cache_directory
from loraprobe.errors import LoraprobeError
from loraprobe.results import NAME, kept_files, locked, names_in, read_fingerprint


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
    return sorted(map(_run, kept_files()), key=lambda run: -run.used)


def clear_kept(runs: Sequence[KeptRun], readings: bool = True) -> list[KeptRun]:
    """Deletes runs; returns those that are in use, which stay.

    readings: also the hashes and readings of files, and the verdicts on compositions.
    """
    left = []
    for run in runs:
        try:
            locked(run.place / NAME).release()
        except LoraprobeError:
            left.append(run)
            continue
        shutil.rmtree(run.place, ignore_errors=True)
    for name in (*FROM_FILES, VERDICTS) if readings else ():
        shutil.rmtree(cache_directory() / name, ignore_errors=True)
    return left


def _run(file: Path) -> KeptRun:
    fingerprint = read_fingerprint(file) or {}
    adapters, tasks = (tuple(names_in(fingerprint, key)) for key in ("adapters", "tasks"))
    size = sum(path.stat().st_size for path in file.parent.rglob("*") if path.is_file())
    return KeptRun(file.parent, adapters, tasks, size, file.stat().st_mtime)
