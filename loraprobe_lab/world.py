"""Writes worlds: task files and the manifest of a directory; `loraprobe.demo` reads them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

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

__all__ = ["FORMAT", "MANIFEST", "Scenario", "World", "WorldError", "shipped_world"]


def worlds_in(directory: Path) -> list[World]:
    """The world in `directory`, or those that lie right below it.

    Raises WorldError where there is neither.
    """
    below = sorted(path.parent for path in directory.glob(f"*/{MANIFEST}"))
    places = [directory] if (directory / MANIFEST).is_file() or not below else below
    return [World.load(place) for place in places]


def versions() -> dict[str, str]:
    """Versions of what a trained world depends on."""
    found = {"loraprobe": __version__}
    for name in ("torch", "transformers", "tokenizers", "peft"):
        found[name] = metadata.version(name)
    return found


def write_tasks(path: Path, items: Iterable[Mapping[str, Any]]) -> None:
    """Writes a task file, one item a line, complete or not at all."""
    lines = [json.dumps(item, ensure_ascii=False) for item in items]
    write_text(path, "\n".join(lines) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes beside `path` and renames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def write_manifest(
    directory: Path,
    *,
    kind: str,
    seed: int,
    recipe: Mapping[str, Any],
    base: Mapping[str, Any],
    adapters: Mapping[str, Mapping[str, Any]],
    scenarios: Mapping[str, Mapping[str, Any]],
    reserve: Sequence[str] = (),
    **notes: Any,
) -> World:
    """Writes the manifest of what lies in `directory` and opens the world.

    `base` is ``{"path": "base" or None, "name": ...}``; an adapter is ``{"path": "adapters/NAME",
    "description": ...}``; a scenario ``{"adapters": [names], "tasks": ["tasks/NAME.jsonl"],
    "description": ...}``. All paths are relative to `directory`.
    """
    places = [row["path"] for row in (base, *adapters.values()) if row.get("path")]
    places += [task for row in scenarios.values() for task in row["tasks"]]
    files = {
        path.relative_to(directory).as_posix(): sha256_of(path)
        for place in sorted(set(places))
        for path in _files_in(directory / place)
    }
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "seed": seed,
        "versions": versions(),
        "recipe": recipe,
        "base": base,
        "adapters": adapters,
        "scenarios": scenarios,
        "reserve": list(reserve),
        **notes,
        "files": files,
    }
    write_text(directory / MANIFEST, json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return World.load(directory)


def _files_in(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
