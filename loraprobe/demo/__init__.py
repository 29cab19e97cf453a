"""The small world that ships with the package, trained from a seed, and how worlds are opened.

A world is a directory with a base, adapters trained on it, tasks, and a manifest.

Layout::

    manifest.json          seed, recipe, versions, paths, SHA-256 of every other file
    base/                  Hugging Face model and tokenizer (absent if the base is elsewhere)
    adapters/NAME/         PEFT directories
    tasks/NAME.jsonl       task files

A *scenario* is an input of ``merge-and-eval``: some of the adapters and some tasks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraprobe.errors import LoraprobeError

MANIFEST = "manifest.json"
FORMAT = 1


class WorldError(LoraprobeError):
    """A directory that is no world, or a scenario that a world does not have."""

    code = "world"


@dataclass(frozen=True)
class Scenario:
    """Adapters by name, and the task files on which their composition is evaluated.

    `guards` are task files of what must not get worse, by name. `world` names the class of
    scenarios, `axes` the parameters of this one.
    """

    name: str
    adapters: Mapping[str, Path]
    tasks: tuple[Path, ...]
    description: str = ""
    world: str = ""
    axes: Mapping[str, Any] = field(default_factory=dict)
    guards: Mapping[str, Path] = field(default_factory=dict)


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

    @classmethod
    def load(cls, directory: str | Path) -> World:
        """Opens the world in `directory`; the files that its manifest names are not read.

        Raises WorldError if there is no manifest of this format.
        """
        path = Path(directory)
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            manifest = None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise WorldError(
                f"{path} holds no {MANIFEST} of format {FORMAT}, so it is no world; build one with "
                "'loraprobe lab build'."
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
                {Path(task).stem: path / task for task in row.get("guards", ())},
            )
            for name, row in manifest["scenarios"].items()
        }
        base = manifest["base"]
        place = path / base["path"] if base.get("path") else None
        return cls(path, place, base["name"], adapters, scenarios, manifest)

    def scenario(self, name: str) -> Scenario:
        """The scenario of that name. Raises WorldError with the known names."""
        if name not in self.scenarios:
            raise WorldError(
                f"This world has no scenario {name!r}; choose one of {', '.join(self.scenarios)}."
            )
        return self.scenarios[name]


def shipped_world() -> World:
    """The small world inside the package, on which the demo runs."""
    return World.load(Path(__file__).parent / "small-world")
