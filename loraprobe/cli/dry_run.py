"""`--dry-run`: what a run would take, for people and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING

from loraprobe.cli.progress import ASK, described, spoken
from loraprobe.memory import gib
from loraprobe.records import SCHEMA_VERSION, document

if TYPE_CHECKING:
    from loraprobe.pipeline.estimating import CostEstimate


def lines(found: CostEstimate) -> list[str]:
    """Systems x items, time by step, and memory, at most 60 columns wide."""
    asking = {name: seconds for name, seconds in found.steps.items() if name.startswith(ASK)}
    told = [f"{len(found.systems)} systems x {found.items} items", ""]
    for name, seconds in found.steps.items():
        if name not in asking and seconds >= 0.5:
            told.append(f"  {described(name):<44}{spoken(seconds):>8}")
    for name, seconds in asking.items():
        told.append(f"  {name:<44}{spoken(seconds):>8}")
    told += [
        "",
        f"about {spoken(found.seconds)}, and {gib(found.memory_bytes)} of memory",
        "Timed on a few of your questions on this machine. It takes",
        "less where the decision holds before all items are asked",
        "(without --all-items). Merges that need new weights, and",
        "the statistics, come on top.",
    ]
    return told


def one_line(found: CostEstimate) -> str:
    """The estimate for --quiet."""
    return f"{spoken(found.seconds)}, {gib(found.memory_bytes)}"


def as_json(found: CostEstimate) -> str:
    """One JSON document."""
    estimate = {
        "systems": list(found.systems),
        "items": found.items,
        "questions": found.questions,
        "seconds": round(found.seconds, 3),
        "memory_bytes": found.memory_bytes,
        "steps": {name: round(seconds, 3) for name, seconds in found.steps.items()},
        "measured": list(found.measured),
    }
    return document(found.command, {"estimate": estimate}, SCHEMA_VERSION)
