"""Finds worlds (`loraprobe.demo`), reads and writes files."""

from __future__ import annotations

import gzip
import os
from importlib import metadata
from pathlib import Path

from loraprobe._version import __version__
from loraprobe.cache import file_hash
from loraprobe.demo import (
    FORMAT,
    MANIFEST,
    Scenario,
    World,
    WorldError,
    shipped_world,
)

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
    others = ("torch", "transformers", "tokenizers", "peft")
    return {"loraprobe": __version__} | {name: metadata.version(name) for name in others}


def write_text(path: Path, text: str) -> None:
    """Writes a file atomically, gzipped if its name ends in .gz; equal texts give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part, data = path.with_name(f".{path.name}.part"), text.encode()
    part.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    os.replace(part, path)


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, gzipped if its name ends in .gz. Raises OSError, EOFError."""
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode().splitlines()
