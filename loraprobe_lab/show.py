"""What a world holds, as plain data: base, adapters, tasks, scenarios, and how each was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from loraprobe_lab.build import command_for
from loraprobe_lab.train import is_complete
from loraprobe_lab.world import MANIFEST, World


def describe(directory: str | Path) -> list[dict[str, Any]]:
    """One description for the world in `directory`, or for each world that lies right below it.

    Raises WorldError where there is neither.
    """
    directory = Path(directory)
    below = sorted(path.parent for path in directory.glob(f"*/{MANIFEST}"))
    if (directory / MANIFEST).is_file() or not below:
        return [describe_world(World.load(directory))]
    return [describe_world(World.load(path)) for path in below]


def describe_world(world: World) -> dict[str, Any]:
    """Base, adapters, tasks and scenarios of one world; nothing is loaded but JSON."""
    manifest = world.manifest
    tasks = dict.fromkeys(task for scenario in world.scenarios.values() for task in scenario.tasks)
    return {
        "path": str(world.path),
        "kind": manifest.get("kind"),
        "seed": world.seed,
        "base": _base(world),
        "adapters": [_adapter(world, name, path) for name, path in world.adapters.items()],
        "tasks": [{"name": path.stem, "items": _lines(path)} for path in tasks],
        "scenarios": [
            {
                "name": scenario.name,
                "world": scenario.world,
                "adapters": list(scenario.adapters),
                "tasks": [task.stem for task in scenario.tasks],
                "axes": dict(scenario.axes),
                "description": scenario.description,
                "command": command_for(world, scenario),
            }
            for scenario in world.scenarios.values()
        ],
        "versions": manifest.get("versions", {}),
    }


def _base(world: World) -> dict[str, Any]:
    found: dict[str, Any] = {"name": world.base_name, "architecture": None, "parameters": None}
    if world.base is None:
        return found
    from loraprobe.base import open_base

    base = open_base(world.base)
    found["architecture"] = base.model_type
    found["parameters"] = sum(rows * columns for rows, columns in base.shapes.values())
    return found


def _adapter(world: World, name: str, path: Path) -> dict[str, Any]:
    row = world.manifest["adapters"].get(name, {})
    return {
        "name": name,
        "description": row.get("description", ""),
        "finished": is_complete(path),
        "recipe": row.get("recipe", {}),
        "loss": _loss(path / "training.json"),
    }


def _loss(path: Path) -> float | None:
    """The mean training loss over the last steps, in nats a token, where it was recorded."""
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("loss")
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def _lines(path: Path) -> int:
    try:
        with path.open("rb") as file:
            return sum(1 for line in file if line.strip())
    except FileNotFoundError:
        return 0
