"""`loraprobe verify`: is a merged or routed directory what its card says?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loraprobe.cli.options import with_options
from loraprobe.cli.output import Output
from loraprobe.options import Options


@with_options("threads", "json", "quiet")
def verify(
    directory: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="What merge, route or merge-and-eval wrote.", show_default=False
        ),
    ],
    options: Options,
    output: Output,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="REF",
            help="Where the adapters are that it was made of, if they moved.",
            show_default=False,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="REF", help="Where the base is, if one was used and it moved."),
    ] = None,
) -> None:
    """Make a merge or a composition again from its card and compare the whole directory.

    Exits 0 if everything holds, 1 if something does not, 2 if nothing can be said.
    """
    import sys

    from loraprobe import pipeline
    from loraprobe.report.verification import as_json, render

    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    found = pipeline.verify(directory, sources or (), base)
    if output.json:
        print(as_json(found))
    elif output.quiet:
        print("verified" if found.passed else "not verified")
    else:
        render(found)
    sys.stdout.flush()
    raise typer.Exit(0 if found.passed else 1)
