"""`loraprobe lab`: controlled worlds with known answers."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand, TyperGroup

from loraprobe.cli.parameters import Plain
from loraprobe.cli.running import Output
from loraprobe.formatting import listing
from loraprobe.records import Progress

if TYPE_CHECKING:
    from loraprobe_lab.experiments.pages import Pages
    from loraprobe_lab.experiments.runner import ExperimentRun


class Group(Plain, TyperGroup):
    """The commands of the lab."""


class Command(Plain, TyperCommand):
    """A command of the lab."""


app = typer.Typer(
    cls=Group,
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Build controlled worlds whose right verdict is known.",
)
command = partial(app.command, cls=Command)


Json = Annotated[bool, typer.Option("--json", help="One JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads.")]
OutputPath = Annotated[
    Path, typer.Option("--output", "-o", help="Where to write what is made.", show_default=False)
]
BaseDirectory = Annotated[
    Path | None,
    typer.Option("--base", help="A causal model's directory; without it small bases are trained."),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn.")]


@contextmanager
def working(sink: Output, threads: int | None = None) -> Iterator[Progress]:
    """The progress on this terminal, that of nothing with --quiet. threads: of torch."""
    import torch

    from loraprobe_lab.world import silent

    torch.set_num_threads(threads or torch.get_num_threads())
    with sink.progress() as progress:
        yield progress or silent


WorldKind = StrEnum(
    "WorldKind",
    "two-hop skill-and-facts keep-both facts math library domain halves twins format "
    "fact-and-skill partner several sets",
)


@command("build")
def build(
    world: Annotated[
        WorldKind,
        typer.Argument(metavar="WORLD", help=f"One of {listing(WorldKind)}.", show_default=False),
    ],
    output: OutputPath,
    base: BaseDirectory = None,
    seed: Seed = 0,
    only: Annotated[
        list[str] | None,
        typer.Option(
            "--only", help="Only this scenario (with --base: adapter or set); may be repeated."
        ),
    ] = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Train a base, adapters and task files from a seed; finished parts are not trained again.

    facts and math hold several adapter sets on one small base, for calibration;
    library holds 200 adapters of which few pairs compose, for `screen`.
    With --base, keep-both and the kinds from domain on are many adapter sets, each a world below
    OUTPUT; `sets` is those and as many of two-hop and skill-and-facts.
    """
    from loraprobe_lab import build as builder

    sink = Output(quiet=quiet)
    with working(sink, threads) as progress:
        worlds = builder.build_worlds(
            world.value, output, base=base, seed=seed, only=only or None, progress=progress
        )
    for made in worlds:
        for name, scenario in made.scenarios.items():
            print(builder.command_for(made, scenario))
            sink.say(f"  {name}: {scenario.description}")


@command("pairs")
def pairs(
    world: Annotated[Path, typer.Argument(help="A world of kind library.", show_default=False)],
    output: OutputPath,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Merge the pairs of a library and count their right answers: the truth for `screen`."""
    from loraprobe_lab.experiments.pages import as_json
    from loraprobe_lab.experiments.pairs import pairs_of
    from loraprobe_lab.world import World, write_text

    sink = Output(quiet=quiet)
    with working(sink, threads) as progress:
        found = pairs_of(World.load(world), progress)
    write_text(output, as_json(found))
    print(output)


@command("calibrate")
def calibrate(
    output: OutputPath,
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
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Calibrate the verdict on measured gains of worlds, and measure the accuracy."""
    # It fits the model of the extension `forecast`, which an installation may lack.
    collect = importlib.import_module("loraprobe_lab.calibration.collect")
    sink = Output(quiet=quiet)
    with working(sink, threads) as progress:
        made = collect.calibrate(
            list(world or ()),
            output,
            stored=cases,
            sizes=collect.SampleSizes(limit, max_new_tokens, dtype),
            across=across,
            progress=progress,
            say=sink.say,
        )
    print(made)


Paper = StrEnum("Paper", "two-hop math")
Architecture = StrEnum("Architecture", "llama gpt2 qwen3 gemma3")
Template = StrEnum("Template", "plain cot shared")
Seeds = Annotated[
    list[int] | None, typer.Option("--seed", help="Seed of a world; may be repeated.")
]
PagesOutput = Annotated[
    Path | None, typer.Option("--output", "-o", help="Directory for page, figure and numbers.")
]


def _show(pages: Pages, sink: Output, output: Path | None = None) -> None:
    """Writes pages if a directory is given, and prints one of them."""
    if output is not None:
        pages.write(output)
        for path in pages.files(output):
            sink.say(f"wrote {path}")
    print(pages.json if sink.json else pages.markdown)


def _experiment(
    run: Callable[[ExperimentRun], Pages],
    output: Path,
    sink: Output,
    limit: int | None = None,
    threads: int | None = None,
) -> None:
    """Runs an experiment, which reports to this terminal and writes its pages, and shows them."""
    from loraprobe_lab.experiments.runner import ExperimentRun

    with working(sink, threads) as progress:
        command = " ".join(("loraprobe", *sys.argv[1:]))
        pages = run(ExperimentRun(output, limit, command, progress, sink.say))
    _show(pages, sink)


@command("reproduce")
def reproduce(
    experiment: Annotated[
        Paper,
        typer.Argument(metavar="EXPERIMENT", help=f"One of {listing(Paper)}.", show_default=False),
    ],
    output: OutputPath,
    architecture: Annotated[
        list[Architecture] | None, typer.Option(help="Of the small bases; may be repeated.")
    ] = None,
    hidden: Annotated[
        list[int] | None, typer.Option(help="Width of a small base; may be repeated.")
    ] = None,
    seed: Seeds = None,
    base: BaseDirectory = None,
    template: Annotated[
        list[Template] | None,
        typer.Option(help="Only this template, without joint adapters; may be repeated."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Repeat the paper's matrix: one table, one figure, and whether each claim held.

    The same call continues an interrupted run.
    """
    from loraprobe_lab.experiments.reproduce import reproduce as run
    from loraprobe_lab.experiments.runner import Bases

    bases = Bases().chosen(architectures=architecture, hidden=hidden, seeds=seed)
    chosen = partial(run, experiment.value, bases=bases, base=base, templates=template or ())
    _experiment(chosen, output, Output(json=json, quiet=quiet))


@command("map")
def success_map(output: OutputPath, json: Json = False, quiet: Quiet = False) -> None:
    """Map where new facts x worked steps succeed: over weights, norms and familiarity."""
    from loraprobe_lab.experiments.success_map import draw_map

    _experiment(draw_map, output, Output(json=json, quiet=quiet))


@command("methods")
def methods(
    output: OutputPath,
    world: Annotated[
        list[Path] | None,
        typer.Option("--world", help="A world that exists, or a directory of such; repeat."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Items of each task.")] = 80,
    threads: Threads = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate every merge method, space and router: two hops, two skills, worked steps.

    Without --world eight small worlds are trained. The same call continues an interrupted run.
    """
    from loraprobe_lab.experiments.methods import try_methods

    chosen = partial(try_methods, worlds=tuple(world or ()))
    _experiment(chosen, output, Output(json=json, quiet=quiet), limit, threads)


@command("theory")
def theory(
    output: PagesOutput = None,
    full: Annotated[
        bool, typer.Option("--full", help="All ranks and places: minutes instead of seconds.")
    ] = False,
    seed: Seed = 0,
    threads: Threads = 1,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show on one trained layer why edits do not compose, and how many facts a rank holds."""
    from loraprobe_lab.experiments import theory as run

    sink = Output(json=json, quiet=quiet)
    with working(sink, threads) as progress:
        pages = run.theory(run.FULL if full else run.QUICK, seed, progress)
    _show(pages, sink, output)


@command("rule")
def rule(output: PagesOutput = None, json: Json = False, quiet: Quiet = False) -> None:
    """Show how often the rule after evaluation is wrong, and how often it abstains."""
    from loraprobe_lab.experiments.rule import examine

    _show(examine(), Output(json=json, quiet=quiet), output)


@command("mergeability")
def mergeability(
    file: Annotated[Path, typer.Argument(help="The published table of pairs.", show_default=False)],
    output: PagesOutput = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show whether figures of a pair or its members tell that it merges well."""
    from loraprobe_lab.experiments.mergeability import mergeability as judge

    _show(judge(file), Output(json=json, quiet=quiet), output)


@command("recycling")
def recycling(
    data: Annotated[
        Path, typer.Argument(help="Directory of the published measurements.", show_default=False)
    ],
    output: PagesOutput = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show how well rules choose between base, best adapter, composition and training."""
    from loraprobe_lab.experiments.recycling import recycling as judge

    _show(judge(data), Output(json=json, quiet=quiet), output)
