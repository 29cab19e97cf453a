"""`loraprobe convert`: one adapter, written so that peft and servers read it."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from loraprobe.cli.options import REQUIRED, BaseOrNone, with_options
from loraprobe.cli.output import Output
from loraprobe.cli.saving import save
from loraprobe.command_options import CONVERT
from loraprobe.options import Options

OUTPUT = "target overwrite push public json html markdown explain quiet"


@with_options(*CONVERT, *OUTPUT.split(), target={"default": REQUIRED})
def convert(
    ref: Annotated[
        str,
        typer.Argument(metavar="REF", help="The adapter, as for inspect.", show_default=False),
    ],
    options: Options,
    output: Output,
    base: BaseOrNone = None,
    portable: Annotated[
        bool,
        typer.Option(
            "--portable/--compact",
            metavar=" ",
            help="One rank and one scaling in all modules, or those of the file.",
            rich_help_panel="Composition",
        ),
    ] = True,
) -> None:
    """Rewrite one adapter so that peft and servers read it, without changing what it computes.

    Keys get peft's prefix once, a .bin becomes safetensors, rsLoRA and patterns become one rank and
    one scaling. What cannot be kept exactly is refused by name. DoRA stays DoRA.
    """
    from loraprobe.pipeline import commands

    options = replace(options, rank_layout="portable" if portable else "compact")
    save(commands.convert, [ref], base, None, options, output)
