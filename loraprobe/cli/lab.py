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
    facts = "facts"
    math = "math"
    cross_lingual = "cross-lingual"
    domain = "domain"
    sets = "sets"


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
    from loraprobe.lab import build as builder

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


@app.command("calibrate")
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
    limit: Annotated[int, typer.Option(min=1, help="Items a task that features rest on.")] = 200,
    most_items: Annotated[int, typer.Option(min=1, help="Items a task for the truth.")] = 2000,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 40,
    processes: Annotated[int, typer.Option(min=1, help="Worlds side by side.")] = 1,
    draws: Annotated[int, typer.Option(min=2, help="Bootstrap samples of every interval.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn.")] = 0,
    collect_only: Annotated[
        bool, typer.Option("--collect-only", help="Write the cases, fit and open nothing.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Calibrate the verdict on worlds whose truth is measured, and measure how good that is."""
    from loraprobe.lab.calibration import run
    from loraprobe.lab.calibration.observe import Effort

    sink = Output(quiet=quiet)
    worlds = list(world or ())
    with sink.progress() as progress:
        if run.wanted(worlds, output):
            sink.say("No worlds are named: the atlas is built first, which takes hours.")
            worlds = run.atlas(output, processes, progress or run.lines(sink.say))
        made = run.calibrate(
            worlds,
            output,
            effort=Effort(limit, most_items, max_new_tokens, seed),
            processes=processes,
            draws=draws,
            progress=progress or run.lines(sink.say),
            say=sink.say,
            collect_only=collect_only,
        )
    print(made)


class Paper(StrEnum):
    """The experiments that can be repeated."""

    two_hop = "two-hop"
    math = "math"


Hidden = Annotated[list[int] | None, typer.Option(help="Width of a small base; may be repeated.")]
Architectures = Annotated[
    list[str] | None, typer.Option("--architecture", help="llama or gpt2; may be repeated.")
]
Seeds = Annotated[
    list[int] | None, typer.Option("--seed", help="Seed of a world; may be repeated.")
]


@app.command("reproduce")
def reproduce(
    experiment: Annotated[Paper, typer.Argument(help="Which experiment.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Directory of worlds and pages.", show_default=False),
    ],
    base: Annotated[
        Path | None,
        typer.Option(help="A causal model's directory; without it small bases are trained."),
    ] = None,
    architecture: Architectures = None,
    hidden: Hidden = None,
    seed: Seeds = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items of each task.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda[:n] or mps; with --base.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Repeat the paper's matrix: one table, one figure, and whether each claim held.

    What is finished is kept: the same call goes on where it stopped.
    """
    import sys

    from loraprobe.lab.reproduce import Bases, Plan
    from loraprobe.lab.reproduce import reproduce as run

    bases = Bases().chosen(architecture, hidden, seed)
    plan = Plan(experiment.value, base, bases, limit, device, tuple(sys.argv[1:]))
    sink = Output(json=json, quiet=quiet)
    with sink.progress() as progress:
        made = run(plan, output, progress=progress, say=sink.say)
    print(made.json if json else made.markdown)


@app.command("map")
def border(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Directory of worlds and pages.", show_default=False),
    ],
    architecture: Architectures = None,
    hidden: Hidden = None,
    seed: Seeds = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Map where success lives: new facts x worked steps, over weights, norms and familiarity."""
    import sys

    from loraprobe.lab.border import draw_map
    from loraprobe.lab.border.run import BASES

    bases = BASES.chosen(architecture, hidden, seed)
    sink = Output(json=json, quiet=quiet)
    with sink.progress() as progress:
        made = draw_map(
            output, bases=bases, arguments=sys.argv[1:], progress=progress, say=sink.say
        )
    print(made.json if json else made.markdown)


@app.command("theory")
def theory(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory for page, figure and numbers."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="All ranks and places: minutes instead of seconds.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of people, answers and trainings.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads; more hardly help.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Show on one trained layer why edits do not compose, and how many facts a rank holds."""
    from json import dumps

    import torch

    from loraprobe.lab.theory import report, run

    torch.set_num_threads(threads)
    sink = Output(json=json, quiet=quiet)
    if output is not None:
        report.check()
    with sink.progress() as progress:
        document = run.theory(run.FULL if full else run.QUICK, seed, progress)
    for path in report.save(document, output) if output is not None else ():
        sink.say(f"wrote {path}")
    print(dumps(document) if json else report.markdown(document))


@app.command("rule")
def rule(
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory for page, figure and numbers."),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=0, help="Simulated runs of every case; 0 leaves them out.")
    ] = 200,
    simulate: Annotated[
        list[int] | None,
        typer.Option(min=2, help="Items of the simulated cases; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the simulated runs.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Show how often the rule after evaluation is wrong, and how often it abstains."""
    from json import dumps

    from loraprobe.lab.rule import report

    sink = Output(json=json, quiet=quiet)
    if output is not None:
        report.check()
    at = tuple(simulate or report.Plan.simulated)
    with sink.progress() as progress:
        document = report.examine(report.Plan(simulated=at, repeats=repeats, seed=seed), progress)
    for path in report.save(document, output) if output is not None else ():
        sink.say(f"wrote {path}")
    print(dumps(document) if json else report.markdown(document))
