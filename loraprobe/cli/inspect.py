"""`loraprobe inspect`: what adapters are, and how they relate to each other."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from loraprobe.cli.options import BaseOrNone, Refs, Tasks, with_options
from loraprobe.cli.output import Output
from loraprobe.cli.saving import check_outputs, checked_shard
from loraprobe.command_options import INSPECT
from loraprobe.options import Options

Probe = Annotated[
    str | None,
    typer.Option(
        metavar="auto|FILE",
        help="auto, or a file with a question or entity a line (an answer after a tab).",
        rich_help_panel="Evaluation",
    ),
]


OUTPUT = "target json html markdown explain quiet exit_zero"


@with_options(
    *INSPECT,
    "shard",
    *OUTPUT.split(),
    target={"help": "Directory for the share of --shard."},
)
def inspect(
    refs: Refs,
    options: Options,
    output: Output,
    base: BaseOrNone = None,
    task: Tasks = None,
    probe: Probe = None,
) -> None:
    """Look at adapters: one, layer by layer; several, all pairs and whether they fit together.

    Needs no base model. --base adds what needs its weights; with --probe it also measures what the
    base knows, and with --task it asks the base, the adapters and their compositions a sample of
    your questions. The verdict goes as far as that evidence. --serve tells what servers would
    refuse or misread in one adapter's file, and exits 1 if one would.
    """
    from loraprobe.pipeline import commands

    sharded = checked_shard(output, options)
    read = [*(task or ()), *([probe] if probe and probe != "auto" else [])]
    with output.progress() as progress:
        written = check_outputs(output, options, refs, base, read)
        given: dict[str, Any] = {"base": base, "tasks": task or (), "options": options}
        given |= {"progress": progress, "written": written}
        if sharded is not None:
            from loraprobe.pipeline.shards import run_shard

            made = run_shard("inspect", refs, sharded, **given)
        else:
            audit = commands.inspect(refs, probe=probe, **given)
    if sharded is not None:
        output.shard("inspect", made)
        return
    output.result(audit)
