"""`loraprobe report`: the report of a run again, from the JSON document that it printed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from loraprobe.cli.options import with_options
from loraprobe.cli.output import Output

Saved = Annotated[
    Path,
    typer.Argument(metavar="AUDIT.json", help="What --json printed.", show_default=False),
]


@with_options("html", "markdown", "explain", "quiet")
def report(file: Saved, output: Output) -> None:
    """Show a saved result again: on the terminal, as a page or as Markdown.

    Nothing is measured. Exits 0 whatever the verdict is, 2 if the file is no such document.
    """
    from loraprobe.report.answer import unplaced
    from loraprobe.report.reading import read_audit

    audit = read_audit(file)
    dataclasses.replace(output, exit_zero=True).result(audit, unplaced(audit))
