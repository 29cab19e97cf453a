"""The commands that write a directory, and `verify`, which checks one against its card."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import typer

from loraprobe.cli.options import REQUIRED, with_options
from loraprobe.cli.output import Output, imports_done
from loraprobe.cli.parameters import (
    BaseOrNone,
    Probe,
    Refs,
    Tasks,
    argument,
    flag,
    setting,
)
from loraprobe.cli.running import run, write
from loraprobe.command_options import CONVERT, MERGE, ROUTE
from loraprobe.errors import UsageError
from loraprobe.options import Options

OUTPUT = "target overwrite push public json html markdown explain quiet"
TARGET = {"default": REQUIRED}
Ref = Annotated[str, argument("REF", "The adapter, as for inspect.")]
Portable = Annotated[
    bool,
    flag(
        "--portable/--compact",
        help="One rank and one scaling in all modules, or those of the file.",
        panel="Composition",
    ),
]
Like = Annotated[
    str | None,
    setting(
        "REF",
        "Give the modules the names that this base or adapter has for them, such as those of the "
        "class with vision.",
        "Adapters",
    ),
]
Directory = Annotated[
    str, argument("DIR", "What merge, route or merge-and-eval wrote; with --served any adapter.")
]
Sources = Annotated[
    list[str] | None,
    argument("REF", "Where the adapters are that it was made of, if they moved."),
]
MovedBase = Annotated[
    str | None, setting("REF", "Where the base is, if one was used and it moved.")
]
Url = Annotated[
    str | None,
    setting(
        "URL",
        "Ask this OpenAI-compatible server whether it applies the adapter (a key comes from "
        "OPENAI_API_KEY).",
        "Server",
    ),
]
Model = Annotated[
    str | None,
    setting("NAME", "The adapter's name on that server, if it has several models.", "Server"),
]


@with_options(
    MERGE,
    OUTPUT,
    target=TARGET,
    methods={"default": "uniform", "repeats": False, "help": "Merge method, as ties:density=0.3."},
    dtype={"help": "Of the file: auto (the sources' widest), float32, bfloat16 or float16."},
)
def merge(
    refs: Refs, options: Options, output: Output, base: BaseOrNone = None, task: Tasks = None
) -> None:
    """Merge adapters into one and write a PEFT directory with a model card.

    Needs no base model, except for DoRA, for modules that only some adapters hold whole, and to
    learn weights on a task; what cannot be merged exactly as it stands is refused by name.
    """
    from loraprobe.pipeline import commands

    _save(output, options, refs, base, task, commands.merge)


@with_options(
    ROUTE,
    OUTPUT,
    target=TARGET,
    routers={"default": "arrow", "repeats": False, "help": "Router, such as arrow:top_k=1."},
)
def route(
    refs: Refs, options: Options, output: Output, base: BaseOrNone = None, task: Tasks = None
) -> None:
    """Save adapters and a router as a composition: a directory that loraprobe.load_composition
    restores, and, where it computes the same, peft's own Arrow.

    Needs no base model, except for a router that learns from prompts, for learned weights, and to
    tell whether peft can express it. Nothing is evaluated: merge-and-eval does that.
    """
    from loraprobe.pipeline import commands

    _save(output, options, refs, base, task, commands.compose)


@with_options(CONVERT, OUTPUT, target=TARGET)
def convert(
    ref: Ref,
    options: Options,
    output: Output,
    base: BaseOrNone = None,
    like: Like = None,
    portable: Portable = True,
) -> None:
    """Rewrite one adapter so that peft and servers read it, without changing what it computes.

    Keys get peft's prefix once, a .bin becomes safetensors, rsLoRA and patterns become one rank and
    one scaling. What cannot be kept exactly is refused by name. DoRA stays DoRA.
    """
    from loraprobe.pipeline import commands

    whole = partial(commands.convert, like=like, portable=portable)
    _save(output, options, [ref], base, None, whole)


def _save(output: Output, *given: Any) -> None:
    """Runs a command that makes something, writes that and prints the audit."""
    found = run(output, *given)
    write(found.made, output)
    output.result(found.audit, line=f"{output.target}: {found.audit.notes[-1]}")


@with_options("device dtype threads trust_remote_code json quiet")
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
    base and of the adapter, run here. Exits 0 if everything holds, 1 if something does not, 3 if it
    cannot be told, such as where a source is not found.
    """
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    if served is None:
        if model or probe:
            raise UsageError("--model and --probe go with --served URL; add that.")
        code = _verify_card(directory, sources or [], base, output)
    else:
        if sources:
            raise UsageError(f"--served takes one adapter, and {sources[0]} was given too.")
        asked = {"model": model, "base": base, "probe": probe, "options": options}
        code = _verify_server(directory, served, output, **asked)
    raise typer.Exit(code)


def _verify_card(directory: str, sources: list[str], base: str | None, output: Output) -> int:
    """Compares a directory with its card; the exit code."""
    from loraprobe.pipeline import verify
    from loraprobe.report.verification import as_plain, render

    imports_done()
    found = verify.verify(directory, sources, base)
    told = {True: (0, "verified"), False: (1, "not verified"), None: (3, "cannot tell")}
    code, short = told[found.passed]
    output.tell("verify", as_plain(found), short, partial(render, found))
    return code


def _verify_server(directory: str, url: str, output: Output, **asked: Any) -> int:
    """Asks a server what it serves; the exit code."""
    from loraprobe.pipeline import served
    from loraprobe.report.verification import render_served

    with output.progress() as progress:
        found = served.ask_server(directory, url, progress=progress, **asked)
    show = partial(render_served, found, directory)
    output.tell("verify", {"served": found}, found.serves, show)
    return {"adapter": 0, "unclear": 3}.get(found.serves, 1)
