"""The arguments and options that commands declare themselves, and those that several share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

DEBUG = "loraprobe.debug"
REFERENCE = "a directory, or owner/name with @revision and :sub/folder where needed, or NAME=REF"


def argument(metavar: str, help: str, **more: Any) -> Any:
    """An argument, which has no default to show."""
    return typer.Argument(metavar=metavar, help=help, show_default=False, **more)


def setting(metavar: str, help: str, panel: str | None = None, **more: Any) -> Any:
    """An option with a value, named after its parameter. panel: where the help shows it."""
    return typer.Option(metavar=metavar, help=help, rich_help_panel=panel, **more)


def flag(*names: str, help: str, panel: str | None = None, **more: Any) -> Any:
    """An option without a value."""
    return typer.Option(*names, metavar=" ", help=help, rich_help_panel=panel, **more)


def _debug(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        ctx.meta[DEBUG] = True  # the same dictionary in every context of a call


Refs = Annotated[list[str], argument("REF", f"Adapters: {REFERENCE}.")]
_BASE = setting(
    "REF", "Base model: a directory, a Hub id, or auto (what the adapters agree on).", "Adapters"
)
Base = Annotated[str, _BASE]
BaseOrNone = Annotated[str | None, _BASE]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        metavar="FILE",
        help="Questions: JSONL, JSON, CSV, TSV, Parquet, hf:// for a data set of the Hub, or "
        "lm_eval:TASK[,TASK][@DIR]; may be repeated.",
        rich_help_panel="Tasks",
    ),
]
Probe = Annotated[
    str | None,
    setting(
        "auto|FILE",
        "auto, or a file with a question or entity a line (an answer after a tab).",
        "Evaluation",
    ),
]
Config = Annotated[
    str | None,
    setting(
        "FILE",
        "Take options that are not given here from this YAML file, by their long names.",
        "Output",
        show_default=False,
    ),
]
Debug = Annotated[
    bool,
    flag("--debug", help="On an error also print the traceback.", panel="Output", callback=_debug),
]
