"""`loraprobe lab`: controlled worlds with known answers."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from loraprobe.cli._output import Output

app = typer.Typer(
    no_args_is_help=True, help="Build controlled worlds whose right verdict is known."
)


class Kind(StrEnum):
    """The worlds that can be built."""

    two_hop = "two-hop"
    skill_and_facts = "skill-and-facts"
    keep_both = "keep-both"


@app.callback()
def lab() -> None:
    """Build controlled worlds whose right verdict is known."""


@app.command("build")
def build(
    world: Annotated[Kind, typer.Argument(help="Which world.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory of the world.", show_default=False)
    ],
    base: Annotated[
        Path | None,
        typer.Option(help="A causal model's directory; without it a small base is trained."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of names, facts and training.")] = 0,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", help="Only this scenario (with --base: this adapter); may be repeated."
        ),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Train a base, adapters and task files from a seed; what is finished is not trained again."""
    from loraprobe.lab import build as builder

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    sink = Output(quiet=quiet)
    with sink.progress() as progress:
        made = builder.build_world(
            world.value, output, base=base, seed=seed, only=only or None, progress=progress
        )
    for name, scenario in made.scenarios.items():
        print(builder.command_for(made, scenario))
        sink.say(f"  {name}: {scenario.description}")


@app.command("show")
def show(
    directory: Annotated[
        Path, typer.Argument(help="A world, or a directory of worlds.", show_default=False)
    ],
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """List what a world holds: base, adapters, tasks, scenarios, and how each was made."""
    from loraprobe.lab.show import describe

    found = describe(directory)
    if json:
        import json as encoder

        print(encoder.dumps(found, indent=1, ensure_ascii=False))
        return
    from rich.console import Console

    from loraprobe.report.worlds import render_world

    for world in found:
        render_world(world, Console(highlight=False))
    if len(found) == 1:
        for scenario in found[0]["scenarios"]:
            print(scenario["command"])
