"""`loraprobe verify`: is a merged directory what its card says?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loraprobe.cli import _options as opt


def verify(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="What loraprobe merge wrote.", show_default=False)
    ],
    threads: opt.Threads = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Check a merged directory against its card: files, sources, the merge made again, peft.

    Exits 0 if everything holds, 1 if something does not, 2 if nothing can be said.
    """
    import sys

    from loraprobe.cli import _work
    from loraprobe.report.verification import as_json, render

    found = _work.verify(directory, threads)
    if json:
        print(as_json(found))
    elif quiet:
        print("verified" if found.passed else "not verified")
    else:
        render(found)
    sys.stdout.flush()
    raise typer.Exit(0 if found.passed else 1)
