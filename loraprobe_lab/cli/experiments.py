"""`loraprobe lab reproduce`, `map`, `methods` and `theory`: experiments with a page each."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from loraprobe.cli.output import Output


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

    from loraprobe_lab.reproduce import Bases, Plan
    from loraprobe_lab.reproduce import reproduce as run

    bases = Bases().chosen(architecture, hidden, seed)
    plan = Plan(experiment.value, base, bases, limit, device, tuple(sys.argv[1:]))
    sink = Output(json=json, quiet=quiet)
    with sink.progress() as progress:
        made = run(plan, output, progress=progress, say=sink.say)
    print(made.json if json else made.markdown)


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

    from loraprobe_lab.border import draw_map
    from loraprobe_lab.border.run import BASES

    bases = BASES.chosen(architecture, hidden, seed)
    sink = Output(json=json, quiet=quiet)
    with sink.progress() as progress:
        made = draw_map(
            output, bases=bases, arguments=sys.argv[1:], progress=progress, say=sink.say
        )
    print(made.json if json else made.markdown)


def methods(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Directory of worlds and pages.", show_default=False),
    ],
    world: Annotated[
        list[Path] | None,
        typer.Option("--world", help="A world that exists, or a directory of such; repeat."),
    ] = None,
    architecture: Architectures = None,
    hidden: Hidden = None,
    seed: Seeds = None,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", "-m", help="Only this merge method; may be repeated."),
    ] = None,
    router: Annotated[
        list[str] | None, typer.Option("--router", help="Only this router; may be repeated.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Items of each task.")] = 80,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Try every merge method, space and router: two hops, two skills, new facts in worked steps.

    Without --world small worlds are trained, eight unless bases are named. What is finished is
    kept: the same call goes on where it stopped.
    """
    import sys

    from loraprobe_lab.methods import Plan, try_methods
    from loraprobe_lab.methods.run import BASES

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    plan = Plan(
        worlds=tuple(world or ()),
        bases=BASES.chosen(architecture, hidden, seed),
        methods=tuple(method or ()),
        routers=tuple(router or ()),
        limit=limit,
        arguments=tuple(sys.argv[1:]),
    )
    sink = Output(json=json, quiet=quiet)
    with sink.progress() as progress:
        made = try_methods(output, plan, progress=progress, say=sink.say)
    print(made.json if json else made.markdown)


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

    from loraprobe_lab.theory import report, run

    torch.set_num_threads(threads)
    sink = Output(json=json, quiet=quiet)
    if output is not None:
        report.check()
    with sink.progress() as progress:
        document = run.theory(run.FULL if full else run.QUICK, seed, progress)
    for path in report.save(document, output) if output is not None else ():
        sink.say(f"wrote {path}")
    print(dumps(document) if json else report.markdown(document))
