"""The commands by name, each in a module beside this one that is imported when it is called."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from loraprobe.cli.config import Configured
from loraprobe.cli.examples import epilog
from loraprobe.formatting import flowing

# Name -> module and function, in the order of --help.
COMMANDS: Mapping[str, str] = {
    "demo": "measuring.demo",
    "find": "information.find",
    "inspect": "measuring.inspect",
    "merge": "making.merge",
    "route": "making.route",
    "merge-and-eval": "measuring.merge_and_eval",
    "screen": "measuring.screen",
    "convert": "making.convert",
    "report": "measuring.report",
    "verify": "making.verify",
    "methods": "methods.methods",
    "cache": "information.cache",
    "env": "information.env",
    "combine": "measuring.combine",
    "lab": "information.lab",
    "task new": "task.new",
    "task check": "task.check",
    "task sample": "task.sample",
}
GROUPS = {"task": "Write, check and preview a file of questions."}
DEBUG = "loraprobe.debug"
HANDING = "combine", "lab"  # these hand words on to other commands
NAMES = tuple(dict.fromkeys(name.partition(" ")[0] for name in COMMANDS))  # and of groups


@functools.cache
def command_of(name: str) -> Any:
    """The command or group that typer runs, whose module is imported here."""
    inside = [known for known in COMMANDS if known.partition(" ")[0] == name]
    app = typer.Typer(
        name=name, help=GROUPS.get(name), no_args_is_help=name in GROUPS, add_completion=False
    )
    for known in inside:
        found = _function(known)
        own, text = known.rpartition(" ")[2], flowing(found.__doc__)
        register = functools.partial(app.command, own, help=text, epilog=epilog(known))
        if known in HANDING:
            passed_on = {"allow_extra_args": True, "ignore_unknown_options": True}
            register(add_help_option=known != "lab", context_settings=passed_on)(found)
        else:
            register(cls=Configured)(found)
    return typer.main.get_command(app)


def outlines() -> dict[str, Any]:
    """Name of a command or a group -> a command with its help alone, which a list of them shows."""
    texts = {n: GROUPS.get(n) or flowing(_function(n).__doc__) for n in NAMES}
    return {name: TyperCommand(name, help=text) for name, text in texts.items()}


def _function(name: str) -> Callable[..., None]:
    """The function of a command, whose module is imported here."""
    module, _, function = COMMANDS[name].partition(".")
    found: Callable[..., None] = vars(importlib.import_module(f"loraprobe.cli.{module}"))[function]
    return found


def _debug(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        ctx.meta[DEBUG] = True  # the same dictionary in every context of a call


Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        metavar=" ",
        callback=_debug,
        help="On an error also print the traceback.",
        rich_help_panel="Output",
    ),
]
