"""`loraprobe lab calibrate`: how good the verdict's probability is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loraprobe.cli.output import Output


def calibrate(
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Directory of cases, calibration and page.", show_default=False
        ),
    ],
    world: Annotated[
        list[Path] | None,
        typer.Option("--world", help="A world; repeat. None: what OUTPUT holds, or the atlas."),
    ] = None,
    cases: Annotated[
        Path | None,
        typer.Option("--cases", help="A case file to fit, in place of worlds.", show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Items a task that forecasts rest on.")] = 200,
    most_items: Annotated[int, typer.Option(min=1, help="Items a task for the truth.")] = 2000,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 40,
    processes: Annotated[int, typer.Option(min=1, help="Worlds side by side.")] = 1,
    draws: Annotated[int, typer.Option(min=2, help="Bootstrap samples of every interval.")] = 300,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    collect_only: Annotated[
        bool, typer.Option("--collect-only", help="Write the cases and fit nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Calibrate the verdict on worlds whose truth is measured, and measure how good that is."""
    from loraprobe_lab.calibration import run
    from loraprobe_lab.calibration.observe import Effort

    sink = Output(quiet=quiet)
    with sink.progress() as progress:
        made = run.calibrate(
            list(world or ()),
            output,
            stored=cases,
            effort=Effort(limit, most_items, max_new_tokens, seed),
            processes=processes,
            draws=draws,
            progress=progress,
            say=sink.say,
            collect_only=collect_only,
        )
    print(made)
