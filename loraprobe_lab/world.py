"""Finds worlds (`loraprobe.demo`), writes files, and works in several processes."""

from __future__ import annotations

import gzip
import multiprocessing
import os
from collections.abc import Callable, Iterable
from concurrent import futures
from importlib import metadata
from pathlib import Path
from typing import Any

from loraprobe._version import __version__
from loraprobe.demo import (
    FORMAT,
    MANIFEST,
    Scenario,
    World,
    WorldError,
    shipped_world,
)
from loraprobe.file_hashes import file_hash

__all__ = ["FORMAT", "MANIFEST", "Scenario", "World", "WorldError", "file_hash", "shipped_world"]


def silent(stage: str, done: int, total: int) -> None:
    """A Progress that reports nothing."""


def worlds_in(directory: Path) -> list[World]:
    """The world in `directory`, or those in its subdirectories. Raises WorldError for none."""
    below = sorted(path.parent for path in directory.glob(f"*/{MANIFEST}"))
    places = [directory] if (directory / MANIFEST).is_file() or not below else below
    return [World.load(place) for place in places]


def versions() -> dict[str, str]:
    """Versions of the packages on which a trained world depends."""
    found = {"loraprobe": __version__}
    for name in ("torch", "transformers", "tokenizers", "peft"):
        found[name] = metadata.version(name)
    return found


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically, gzipped if its name ends in .gz; equal texts give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part, data = path.with_name(f".{path.name}.part"), text.encode()
    part.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    os.replace(part, path)


def in_processes(
    work: Callable[..., Any],
    calls: Iterable[tuple[Any, ...]],
    processes: int,
    tick: Callable[[], None],
) -> None:
    """Calls work(*arguments) for every tuple of arguments, and `tick` after each.

    The first error ends the work and is raised.
    """
    import torch

    context = multiprocessing.get_context("spawn")  # a forked torch may hang
    with futures.ProcessPoolExecutor(
        processes, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        running = [pool.submit(work, *arguments) for arguments in calls]
        try:
            for future in futures.as_completed(running):
                future.result()
                tick()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
