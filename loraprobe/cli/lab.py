"""`loraprobe lab`, which hands its words on to the commands of the lab."""

from __future__ import annotations

import importlib.metadata

import typer

from loraprobe.cli.running import imports_done
from loraprobe.errors import UsageError


def lab(
    ctx: typer.Context,
) -> None:
    """Build controlled worlds whose right verdict is known, and repeat the experiments on them."""
    for point in importlib.metadata.entry_points(group="loraprobe.commands", name="lab"):
        try:
            app = point.load()
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != point.module.partition(".")[0]:
                raise
            continue
        command = typer.main.get_command(app)
        imports_done()
        with command.make_context("lab", ctx.args or ["--help"], parent=ctx.parent) as inner:
            command.invoke(inner)
        return
    raise UsageError("The lab is not installed:", "pip install 'loraprobe[lab]'.")
