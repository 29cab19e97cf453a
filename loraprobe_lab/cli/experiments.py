"""`loraprobe lab reproduce`, `map`, `methods`, `theory`, `rule`, `recycling`: one page each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraprobe.cli.output import Output
from loraprobe_lab.cli import options

if TYPE_CHECKING:
    from loraprobe.records import Progress
    from loraprobe_lab.experiments.pages import Pages
    from loraprobe_lab.experiments.runner import ExperimentRun


Paper = StrEnum("Paper", "two-hop math")
Template = StrEnum("Template", "plain cot shared")
Hidden = Annotated[list[int] | None, typer.Option(help="Width of a small base; may be repeated.")]
Architectures = Annotated[
    list[str] | None,
    typer.Option("--architecture", help="llama, gpt2, qwen3 or gemma3; may be repeated."),
]
Seeds = Annotated[
    list[int] | None, typer.Option("--seed", help="Seed of a world; may be repeated.")
]
PagesOutput = Annotated[
    Path | None, typer.Option("--output", "-o", help="Directory for page, figure and numbers.")
]


def _print(pages: Pages, json: bool) -> None:
    print(pages.json if json else pages.markdown)


@contextmanager
def _run(output: Path, json: bool, quiet: bool, **more: Any) -> Iterator[ExperimentRun]:
    """An experiment's run, which reports to this terminal."""
    from loraprobe_lab.experiments.runner import ExperimentRun

    sink = Output(json=json, quiet=quiet)
    with sink.progress() as progress:
        command = " ".join(("loraprobe", *sys.argv[1:]))
        yield ExperimentRun(output, command=command, progress=progress, say=sink.say, **more)


def _make(
    make: Callable[[Progress | None], Pages], output: Path | None, json: bool, quiet: bool
) -> None:
    """Makes pages, writes them if a directory is given, and prints one of them."""
    sink = Output(json=json, quiet=quiet)
    with sink.progress() as progress:
        pages = make(progress)
    if output is not None:
        pages.write(output)
        for path in pages.files(output):
            sink.say(f"wrote {path}")
    _print(pages, json)


def reproduce(
    experiment: Annotated[Paper, typer.Argument(help="Which experiment.", show_default=False)],
    output: options.OutputPath,
    base: options.BaseDirectory = None,
    architecture: Architectures = None,
    hidden: Hidden = None,
    seed: Seeds = None,
    template: Annotated[
        list[Template] | None,
        typer.Option(help="Only this template, without joint adapters; may be repeated."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items of each task.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda[:n] or mps; with --base.")] = "auto",
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Repeat the paper's matrix: one table, one figure, and whether each claim held.

    The same call continues an interrupted run.
    """
    from loraprobe_lab.experiments import reproduce as run
    from loraprobe_lab.experiments.runner import Bases

    bases = Bases().chosen(architecture, hidden, seed)
    plan = run.ReproducePlan(experiment.value, base, bases, tuple(template or ()))
    with _run(output, json, quiet, limit=limit, device=device if base else "cpu") as call:
        _print(run.reproduce(plan, call), json)


def success_map(
    output: options.OutputPath,
    architecture: Architectures = None,
    hidden: Hidden = None,
    seed: Seeds = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Map where new facts x worked steps succeed: over weights, norms and familiarity."""
    from loraprobe_lab.experiments import success_map as run

    with _run(output, json, quiet) as call:
        _print(run.draw_map(call, run.BASES.chosen(architecture, hidden, seed)), json)


def methods(
    output: options.OutputPath,
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
    threads: options.Threads = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Evaluate every merge method, space and router: two hops, two skills, worked steps.

    Without --world small worlds are trained, eight unless bases are named. The same call continues
    an interrupted run.
    """
    from loraprobe_lab.experiments.methods import run

    options.use_threads(threads)
    plan = run.MethodsPlan(
        worlds=tuple(world or ()),
        bases=run.BASES.chosen(architecture, hidden, seed),
        methods=tuple(method or ()),
        routers=tuple(router or ()),
    )
    with _run(output, json, quiet, limit=limit, pause=run.PAUSE) as call:
        _print(run.try_methods(call, plan), json)


def theory(
    output: PagesOutput = None,
    full: Annotated[
        bool, typer.Option("--full", help="All ranks and places: minutes instead of seconds.")
    ] = False,
    seed: options.Seed = 0,
    threads: options.Threads = 1,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show on one trained layer why edits do not compose, and how many facts a rank holds."""
    from loraprobe_lab.experiments.theory import run

    options.use_threads(threads)
    plan = run.FULL if full else run.QUICK
    _make(lambda progress: run.theory(plan, seed, progress), output, json, quiet)


def rule(
    output: PagesOutput = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show how often the rule after evaluation is wrong, and how often it abstains."""
    from loraprobe_lab.experiments.rule import examine

    _make(lambda _: examine(), output, json, quiet)


def recycling(
    data: Annotated[
        Path, typer.Argument(help="Directory of the published measurements.", show_default=False)
    ],
    output: PagesOutput = None,
    seed: options.Seed = 0,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Show how well rules choose between base, best adapter, composition and training."""
    from loraprobe_lab.experiments.recycling import recycling as judge

    _make(lambda _: judge(data, seed), output, json, quiet)
