"""Finds worlds (`loraprobe.demo.world`) and writes their files."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

from loraprobe._version import __version__
from loraprobe.demo.world import (
    FORMAT,
    MANIFEST,
    Scenario,
    World,
    WorldError,
    sha256_of,
    shipped_world,
)

__all__ = [
    "FORMAT",
    "MANIFEST",
    "Scenario",
    "World",
    "WorldError",
    "sha256_of",
    "shipped_world",
]


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
    """Writes a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
