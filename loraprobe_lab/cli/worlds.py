"""`loraprobe lab build` and `show`: worlds made, and what they hold."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from loraprobe.cli.output import Output


class Kind(StrEnum):
    """The worlds that can be built."""

    two_hop = "two-hop"
    skill_and_facts = "skill-and-facts"
    keep_both = "keep-both"
    facts = "facts"
    math = "math"
    cross_lingual = "cross-lingual"
    domain = "domain"
    sets = "sets"


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
            "--only", help="Only this scenario (with --base: adapter or set); may be repeated."
        ),
    ] = None,
    relations: Annotated[
        Path | None, typer.Option(help="Files of relations, for sets about products.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Train a base, adapters and task files from a seed; what is finished is not trained again.

    facts, math and cross-lingual hold several trials on one small base, for calibration.
    With --base, keep-both and domain are many sets of adapters, each a world below OUTPUT; `sets`
    is those and as many of two-hop and skill-and-facts.
    """
    from loraprobe_lab import build as builder

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    sink = Output(quiet=quiet)
    with sink.progress() as progress:
        worlds = builder.build_worlds(
            world.value,
            output,
            base=base,
            seed=seed,
            only=only or None,
            relations=relations,
            progress=progress,
        )
    for made in worlds:
        for name, scenario in made.scenarios.items():
            print(builder.command_for(made, scenario))
            sink.say(f"  {name}: {scenario.description}")


def show(
    directory: Annotated[
        Path, typer.Argument(help="A world, or a directory of worlds.", show_default=False)
    ],
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """List what a world holds: base, adapters, tasks, scenarios, and how each was made."""
    from loraprobe_lab.show import describe

    found = describe(directory)
    if json:
        import json as encoder

        print(encoder.dumps(found, indent=1, ensure_ascii=False))
        return
    from rich.console import Console

    from loraprobe_lab.cli.world_table import render_world

    for world in found:
        render_world(world, Console(highlight=False))
    if len(found) == 1:
        for scenario in found[0]["scenarios"]:
            print(scenario["command"])
