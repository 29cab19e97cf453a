"""Descriptions of worlds on a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from loraprobe.report.wording import clean


def render_world(world: Mapping[str, Any], console: Console) -> None:
    """One world: its base, its adapters, and the scenarios with what judges them."""
    base = world["base"]
    parameters = (
        f", {base['parameters'] / 1e6:.2g} million parameters" if base["parameters"] else ""
    )
    kind = base["architecture"] or "elsewhere"
    console.print(
        f"[bold]{_text(world['path'])}[/]  {_text(world['kind'])}, seed {world['seed']}; "
        f"base {_text(base['name'])} ({_text(kind)}{parameters})"
    )
    adapters = Table("adapter", "rank", "steps", "loss", "what it learned", box=None)
    for row in world["adapters"]:
        recipe = row["recipe"]
        loss = "" if row["loss"] is None else f"{row['loss']:.3f}"
        adapters.add_row(
            _text(row["name"]) + ("" if row["finished"] else " [yellow](unfinished)[/]"),
            str(recipe.get("rank", "")),
            str(recipe.get("steps", "")),
            loss,
            _text(row["description"]),
        )
    console.print(adapters)
    items = {row["name"]: row["items"] for row in world["tasks"]}
    scenarios = Table("scenario", "class", "adapters", "tasks (items)", "axes", box=None)
    for row in world["scenarios"]:
        scenarios.add_row(
            _text(row["name"]),
            _text(row["world"]),
            _text(", ".join(row["adapters"])),
            _text(", ".join(f"{task} ({items[task]})" for task in row["tasks"])),
            _text(_axes(row["axes"])),
        )
    console.print(scenarios)


def _axes(axes: Mapping[str, Any]) -> str:
    """The axes that are one value each; recipes stand with the adapters."""
    plain = {k: v for k, v in axes.items() if not isinstance(v, Mapping)}
    return ", ".join(f"{name} {value}" for name, value in plain.items())


def _text(value: Any) -> str:
    return escape(clean(str(value)))
