"""Describes a world as plain data: base, adapters, tasks and scenarios, with their recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loraprobe_lab.build import command_for
from loraprobe_lab.training.train import is_complete, training_notes
from loraprobe_lab.world import World, worlds_in


def describe(directory: str | Path) -> list[dict[str, Any]]:
    """The description of the world in `directory`, or of each world in its subdirectories.

    Raises WorldError if there is none.
    """
    return [describe_world(world) for world in worlds_in(Path(directory))]


def describe_world(world: World) -> dict[str, Any]:
    """Base, adapters, tasks and scenarios of one world; nothing is loaded but JSON."""
    manifest = world.manifest
    tasks = dict.fromkeys(task for scenario in world.scenarios.values() for task in scenario.tasks)
    return {
        "path": str(world.path),
        "kind": manifest.get("kind"),
        "seed": world.seed,
        "base": describe_base(world),
        "adapters": [_adapter(world, name, path) for name, path in world.adapters.items()],
        "tasks": [{"name": path.stem, "items": _items(path)} for path in tasks],
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


def describe_base(world: World) -> dict[str, Any]:
    """Name, architecture and number of parameters, the latter two of a base inside the world."""
    from loraprobe.base import open_base

    if world.base is None:
        return {"name": world.base_name, "architecture": None, "parameters": None}
    base = open_base(world.base)
    parameters = sum(rows * columns for rows, columns in base.shapes.values())
    return {
        "name": world.base_name,
        "architecture": base.model_type,
        "parameters": parameters,
    }


def _adapter(world: World, name: str, path: Path) -> dict[str, Any]:
    row, notes = world.manifest["adapters"].get(name, {}), training_notes(path)
    return {
        "name": name,
        "description": row.get("description", ""),
        "finished": is_complete(path),
        "recipe": row.get("recipe", {}),
        "loss": notes.get("loss"),  # mean over the last steps, in nats a token, where recorded
    }


def _items(path: Path) -> int:
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return sum(1 for line in lines if line.strip())
