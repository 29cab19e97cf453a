"""`loraprobe verify`: is a directory what its card says, and does a server apply it?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from loraprobe.cli.inspect import Probe
from loraprobe.cli.options import with_options
from loraprobe.cli.output import Output
from loraprobe.errors import UsageError
from loraprobe.options import Options

Directory = Annotated[
    str,
    typer.Argument(
        metavar="DIR",
        help="What merge, route or merge-and-eval wrote; with --served any adapter.",
        show_default=False,
    ),
]
Sources = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="REF",
        help="Where the adapters are that it was made of, if they moved.",
        show_default=False,
    ),
]
MovedBase = Annotated[
    str | None,
    typer.Option(metavar="REF", help="Where the base is, if one was used and it moved."),
]
Url = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Ask this OpenAI-compatible server whether it applies the adapter (a key comes from "
        "OPENAI_API_KEY).",
        rich_help_panel="Server",
    ),
]
Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="The adapter's name on that server, if it has several models.",
        rich_help_panel="Server",
    ),
]


@with_options("device", "dtype", "threads", "trust_remote_code", "json", "quiet")
def verify(
    directory: Directory,
    options: Options,
    output: Output,
    sources: Sources = None,
    base: MovedBase = None,
    served: Url = None,
    model: Model = None,
    probe: Probe = None,
) -> None:
    """Make a merge or a composition again from its card and compare the whole directory.

    With --served it instead compares the log-probabilities of a running server with those of the
    base and of the adapter, run here. Exits 0 if everything holds, 1 if something does not, 2 if
    nothing can be said.
    """
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    if served is None:
        if model or probe:
            raise UsageError("--model and --probe go with --served URL; add that.")
        code = _card(directory, sources or [], base, output)
    else:
        if sources:
            raise UsageError(f"--served takes one adapter, and {sources[0]} was given too.")
        code = _server(
            directory, served, output, model=model, base=base, probe=probe, options=options
        )
    raise typer.Exit(code)


def _card(directory: str, sources: list[str], base: str | None, output: Output) -> int:
    """Compares a directory with its card; the exit code."""
    from loraprobe.pipeline.verification import command
    from loraprobe.report.verification import as_json, render

    found = command.verify(directory, sources, base)
    if output.json:
        print(as_json(found), flush=True)
    elif output.quiet:
        print("verified" if found.passed else "not verified", flush=True)
    else:
        render(found)
    return 0 if found.passed else 1


def _server(directory: str, url: str, output: Output, **asked: Any) -> int:
    """Asks a server what it serves; the exit code."""
    from loraprobe.pipeline import served
    from loraprobe.records import document
    from loraprobe.report.verification import render_served

    with output.progress() as progress:
        found = served.ask_server(directory, url, progress=progress, **asked)
    if output.json:
        print(document("verify", {"served": found}), flush=True)
    elif output.quiet:
        print(found.serves, flush=True)
    else:
        render_served(found, directory)
    return {"adapter": 0, "unclear": 2}.get(found.serves, 1)
