"""`loraprobe screen`: a library of adapters, and what of it to use for a task."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from loraprobe.cli.options import REFERENCE, BaseOrNone, Tasks, with_options
from loraprobe.cli.output import Output
from loraprobe.cli.saving import check_outputs, checked_shard
from loraprobe.command_options import SCREEN
from loraprobe.errors import UsageError
from loraprobe.options import Options

OUTPUT = "target json html markdown explain dry_run quiet exit_zero"
Library = Annotated[
    list[str],
    typer.Argument(
        metavar="REF",
        help=f"Adapters: {REFERENCE}; @FILE with one a line; or - for standard input.",
        show_default=False,
    ),
]


@with_options(
    *SCREEN,
    "shard",
    *OUTPUT.split(),
    target={"help": "Directory for the share of --shard."},
)
def screen(
    refs: Library,
    options: Options,
    output: Output,
    base: BaseOrNone = None,
    task: Tasks = None,
) -> None:
    """Look through a library of adapters for what can be used, and for what your task needs.

    Every adapter is read once; what is broken, a copy, or of another base is named. With --task
    base and adapters answer a part of your questions, the compositions that look best are proved on
    the others, and the verdict covers the choice. Exit code 0: a composition likely works, or there
    was no task; 1: none does, or no adapter can be used; 3: undecided.

    As one pipe: loraprobe find BASE | loraprobe screen - --task FILE
    """
    from loraprobe.library import listed
    from loraprobe.pipeline.screening import command

    sharded = checked_shard(output, options)
    if sharded and "-" in refs:
        raise UsageError("combine reads the library again: give a --shard its list as @FILE.")
    given = [str(one) for one in listed(refs, sys.stdin)]
    with output.progress() as progress:
        written = check_outputs(output, options, given, base, task)
        how: dict[str, Any] = {"base": base, "tasks": task or (), "options": options}
        how |= {"progress": progress, "written": written}
        if output.dry_run:
            cost = command.estimate_screen(given, **how)
        elif sharded is not None:
            made = command.screen_shard(given, sharded, **how)
        else:
            audit = command.screen(given, **how)
    if output.dry_run:
        output.estimate(cost)
    elif sharded is not None:
        output.shard("screen", made)
    else:
        output.result(audit)
