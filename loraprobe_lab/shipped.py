"""Builds the world that ships inside the package, and the table of its outcomes.

    python -m loraprobe_lab.shipped DIRECTORY

About six minutes on one core. The package's own copy was made by this command.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from loraprobe.records import Progress
from loraprobe_lab.measure import Outcome, outcomes
from loraprobe_lab.world import World, write_text
from loraprobe_lab.worlds.small import SHIPPED, small_world
from loraprobe_lab.worlds.spec import build_world

OUTCOMES = "outcomes.json"


def build_shipped_world(output: str | Path, *, progress: Progress | None = None) -> World:
    """Builds the shipped scenarios in `output` and writes what peft measures on them beside them.

    Resumable, like every build. Raises what `build_world` raises.
    """
    world = build_world(small_world(only=SHIPPED), output, progress=progress)
    rows = ",\n".join(json.dumps(row) for row in outcomes(world))
    write_text(world.path / OUTCOMES, f"[\n{rows}\n]\n")
    return world


def read_outcomes(world: World) -> list[Outcome]:
    """Rows of scenario, system, task, part, value (exact match), n, as measured with peft."""
    return json.loads((world.path / OUTCOMES).read_text(encoding="utf-8"))


def main(arguments: Sequence[str]) -> int:
    """Builds into the directory named and prints the outcomes, one a line."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2

    def progress(stage: str, done: int, total: int) -> None:
        print(f"\r{done / total:4.0%} {stage:20}", end="", file=sys.stderr)

    world = build_shipped_world(arguments[0], progress=progress)
    print(file=sys.stderr)
    for row in read_outcomes(world):
        where = f"{row['scenario']:16} {row['system']:24} {row['task']:12} {row['part']:7}"
        print(f"{where} {row['value']:.2f} (n = {row['n']})")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
