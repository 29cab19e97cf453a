"""`loraprobe find`: adapters of a base model on the Hub."""

from __future__ import annotations

from typing import Annotated

import typer

from loraprobe.cli.options import with_options
from loraprobe.cli.output import Output


@with_options("json", "quiet")
def find(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="Base model on the Hub.", show_default=False)
    ],
    output: Output,
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="At most so many.")] = 30,
) -> None:
    """List PEFT adapters of a base model on the Hub, the most downloaded first.

    A table on a terminal; into a pipe, or with --quiet, one reference a line:
    loraprobe inspect $(loraprobe find BASE --limit 2 --quiet)
    """
    import sys

    from loraprobe import hub
    from loraprobe.report.formatting import clean

    found = hub.find_adapters(base, limit)
    if output.json:
        from loraprobe.records import document

        print(document("find", {"base": base, "adapters": found}))
    elif output.quiet or not sys.stdout.isatty():
        for one in found:
            print(clean(one.reference))
    else:
        from loraprobe.report.search_results import render

        render(base, found)
    sys.stdout.flush()
