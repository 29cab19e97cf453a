"""A world: a directory with a base, adapters trained on it, tasks, and a manifest of all of it.

Layout::

    manifest.json          seed, recipe, versions, what lies where, SHA-256 of every other file
    base/                  Hugging Face model and tokenizer (absent where the base lies elsewhere)
    adapters/NAME/         PEFT directories
    tasks/NAME.jsonl       task files

A *scenario* is a question to put to ``merge-and-eval``: some of the adapters and some tasks.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from loraprobe._version import __version__
from loraprobe.errors import LoraprobeError

MANIFEST = "manifest.json"
FORMAT = 1


class WorldError(LoraprobeError):
    """A directory that is no world, or whose files are not those of its manifest."""


@dataclass(frozen=True)
class Scenario:
    """Adapters by name and task files that are judged together.

    `world` is the class of scenarios that it belongs to, `axes` says where in it it lies.
    """

    name: str
    adapters: Mapping[str, Path]
    tasks: tuple[Path, ...]
    description: str = ""
    world: str = ""
    axes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class World:
    """An opened world. `base` is None where the manifest only names the base (`base_name`)."""

    path: Path
    base: Path | None
    base_name: str
    adapters: Mapping[str, Path]
    scenarios: Mapping[str, Scenario]
    manifest: Mapping[str, Any] = field(repr=False)

    @property
    def seed(self) -> int:
        return self.manifest["seed"]

    @property
    def reserve(self) -> tuple[str, ...]:
        """Names the base can spell but knows nothing about."""
        return tuple(self.manifest.get("reserve", ()))

    @classmethod
    def load(cls, directory: str | Path) -> World:
        """Opens the world in `directory`; its files are not read (see `verify`).

        Raises:
            WorldError: there is no manifest, or it cannot be understood.
        """
        path = Path(directory)
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise WorldError(
                f"{path} is no world: it holds no {MANIFEST}; build one with 'loraprobe lab build'."
            ) from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise WorldError(f"{path / MANIFEST} is not readable as JSON: {error}.") from None
        form = manifest.get("format") if isinstance(manifest, dict) else None
        if form != FORMAT:
            raise WorldError(
                f"{path / MANIFEST} has format {form!r}, this version of loraprobe reads format "
                f"{FORMAT}; build the world again, or name another directory."
            )
        adapters = {name: path / row["path"] for name, row in manifest["adapters"].items()}
        scenarios = {
            name: Scenario(
                name,
                {adapter: adapters[adapter] for adapter in row["adapters"]},
                tuple(path / task for task in row["tasks"]),
                row.get("description", ""),
                row.get("world", manifest.get("kind", "")),
                row.get("axes", {}),
            )
            for name, row in manifest["scenarios"].items()
        }
        base = manifest["base"]
        place = path / base["path"] if base.get("path") else None
        return cls(path, place, base["name"], adapters, scenarios, manifest)

    def scenario(self, name: str) -> Scenario:
        """The scenario of that name. Raises WorldError naming those there are."""
        if name not in self.scenarios:
            raise WorldError(
                f"This world has no scenario {name!r}; it has {', '.join(self.scenarios)}."
            )
        return self.scenarios[name]

    def verify(self) -> None:
        """Checks every file against the manifest.

        Raises:
            WorldError: naming the files that are missing or differ.
        """
        wrong = [
            name
            for name, digest in self.manifest["files"].items()
            if not (self.path / name).is_file() or sha256_of(self.path / name) != digest
        ]
        if wrong:
            raise WorldError(
                f"{self.path} is not as it was built: {', '.join(wrong)} missing or changed; "
                "build the world again."
            )


def shipped_world() -> World:
    """The small world inside the package, on which the demo runs."""
    return World.load(Path(__file__).parent / "data" / "small-world")


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


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
