"""Builds the world that ships inside the package, and the table of its outcomes.

    python -m loraprobe_lab.shipped DIRECTORY

About six minutes on one core. The package's own copy was made by this command.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from loraprobe_lab.measure import Outcome, outcomes
from loraprobe_lab.plans import SHIPPED
from loraprobe_lab.small import SmallPlan, build_small_world
from loraprobe_lab.train import ProgressCallback
from loraprobe_lab.world import World, write_text

OUTCOMES = "outcomes.json"


def build_shipped_world(
    output: str | Path,
    *,
    seed: int = 0,
    plan: SmallPlan | None = None,
    progress: ProgressCallback | None = None,
) -> World:
    """Builds the shipped scenarios in `output` and writes what peft measures on them beside them.

    Resumable, like every build. Raises what `build_small_world` raises.
    """
    world = build_small_world(output, only=SHIPPED, seed=seed, plan=plan, progress=progress)
    rows = ",\n".join(json.dumps(row) for row in outcomes(world))
    write_text(world.path / OUTCOMES, f"[\n{rows}\n]\n")
    return world


def read_outcomes(world: World) -> list[Outcome]:
    """Rows of scenario, system, task, part, value (exact match), n, as measured with peft."""
    return json.loads((world.path / OUTCOMES).read_text(encoding="utf-8"))


def table(rows: Sequence[Outcome]) -> str:
    """The outcomes as Markdown: one table a scenario, systems down, parts across."""
    lines = []
    for scenario in dict.fromkeys(row["scenario"] for row in rows):
        here = [row for row in rows if row["scenario"] == scenario]
        many = len({row["task"] for row in here}) > 1
        heads = {(r["task"], r["part"]): r["task"] if many else r["part"] for r in here}
        lines += [f"**{scenario}** (n = {here[0]['n']})", ""]
        lines += [
            "| system | " + " | ".join(heads.values()) + " |",
            "| --- " * (len(heads) + 1) + "|",
        ]
        for system in dict.fromkeys(row["system"] for row in here):
            cells = {(r["task"], r["part"]): r["value"] for r in here if r["system"] == system}
            lines.append(f"| {system} | " + " | ".join(f"{cells[h]:.2f}" for h in heads) + " |")
        lines.append("")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Builds into the directory named and prints the table of outcomes."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2

    def progress(stage: str, done: int, total: int) -> None:
        print(f"\r{done / total:4.0%} {stage:20}", end="", file=sys.stderr)

    world = build_shipped_world(arguments[0], progress=progress)
    print(file=sys.stderr)
    print(table(read_outcomes(world)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
