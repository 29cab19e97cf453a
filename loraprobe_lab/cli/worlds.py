"""`loraprobe lab build`, `pairs` and `calibrate`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from loraprobe.cli.output import Output
from loraprobe_lab.cli import options

WorldKind = StrEnum(
    "WorldKind",
    "two-hop skill-and-facts keep-both facts math library domain halves twins format "
    "fact-and-skill partner several sets",
)


def build(
    world: Annotated[WorldKind, typer.Argument(help="Which world.", show_default=False)],
    output: options.OutputPath,
    base: options.BaseDirectory = None,
    seed: options.Seed = 0,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", help="Only this scenario (with --base: adapter or set); may be repeated."
        ),
    ] = None,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Train a base, adapters and task files from a seed; finished parts are not trained again.

    facts and math hold several adapter sets on one small base, for calibration;
    library holds 200 adapters of which few pairs compose, for `screen`.
    With --base, keep-both and the kinds from domain on are many adapter sets, each a world below
    OUTPUT; `sets` is those and as many of two-hop and skill-and-facts.
    """
    from loraprobe_lab import build as builder

    options.use_threads(threads)
    sink = Output(quiet=quiet)
    with sink.progress() as progress:
        worlds = builder.build_worlds(
            world.value, output, base=base, seed=seed, only=only or None, progress=progress
        )
    for made in worlds:
        for name, scenario in made.scenarios.items():
            print(builder.command_for(made, scenario))
            sink.say(f"  {name}: {scenario.description}")


def pairs(
    world: Annotated[Path, typer.Argument(help="A world of kind library.", show_default=False)],
    output: options.OutputPath,
    seed: options.Seed = 0,
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Merge the pairs of a library and count their right answers: the truth for `screen`."""
    from loraprobe_lab.experiments.pages import as_json
    from loraprobe_lab.experiments.pairs import pairs_of
    from loraprobe_lab.world import World, write_text

    options.use_threads(threads)
    sink = Output(quiet=quiet)
    with sink.progress() as progress:
        found = pairs_of(World.load(world), seed, progress)
    write_text(output, as_json(found))
    print(output)


def calibrate(
    output: options.OutputPath,
    world: Annotated[
        list[Path] | None,
        typer.Option("--world", help="A world; repeat. None: what OUTPUT holds, or the atlas."),
    ] = None,
    cases: Annotated[
        Path | None,
        typer.Option("--cases", help="Stored cases; worlds are added.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Items of each task.")] = 200,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 40,
    dtype: Annotated[str, typer.Option(help="In which the model computes.")] = "auto",
    across: Annotated[
        bool, typer.Option("--across", help="Also pairs of adapters across sets with two tasks.")
    ] = False,
    processes: Annotated[int, typer.Option(min=1, help="Worlds in parallel.")] = 1,
    seed: options.Seed = 0,
    quiet: options.Quiet = False,
) -> None:
    """Calibrate the verdict on measured gains of worlds, and measure the accuracy."""
    from loraprobe_lab.calibration import run
    from loraprobe_lab.calibration.collect import SampleSizes

    sink = Output(quiet=quiet)
    with sink.progress() as progress:
        made = run.calibrate(
            list(world or ()),
            output,
            stored=cases,
            sizes=SampleSizes(limit, max_new_tokens, seed, dtype),
            across=across,
            processes=processes,
            progress=progress,
            say=sink.say,
        )
    print(made)
