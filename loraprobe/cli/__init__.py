"""The command line: its commands, its errors as sentences, its exit codes."""

from __future__ import annotations

import io
import os
import signal
import sys
import time
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from loraprobe._version import __version__
from loraprobe.cli.commands import NAMES, command_of, outlines
from loraprobe.cli.config import STARTED, WORDS
from loraprobe.cli.failures import INTERRUPTIONS, TYPERS_USAGE, ended
from loraprobe.cli.parameters import DEBUG, DebugOption, flag

# What typer itself turns into an exit code, or main into a sentence.
TYPERS_OWN: tuple[type[Exception], ...] = (typer.Exit, TYPERS_USAGE)


class Guarded(TyperGroup):
    """Turns every error of a command into one sentence on standard error and an exit code."""

    as_json = False

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = dict.fromkeys(NAMES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command, made when it is called; None for an unknown name."""
        return self.commands[cmd_name] or command_of(cmd_name) if cmd_name in NAMES else None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        whole, self.commands = self.commands, outlines()  # the list shows no option of theirs
        try:
            super().format_help(ctx, formatter)
        finally:
            self.commands = whole

    def main(self, *args: Any, **extra: Any) -> Any:
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is None:  # the caller closed it
                setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
            elif isinstance(stream, io.TextIOWrapper):  # a name may hold what it cannot show
                stream.reconfigure(errors="backslashreplace")
        given = args[0] if args else extra.get("args")
        words = sys.argv[1:] if given is None else list(given)
        WORDS[:] = words
        self.as_json = "--json" in words
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
        except BaseException as error:  # before a command was found, or the end as it should be
            if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
                raise
            code = ended(error, debug="--debug" in words, as_json=self.as_json)
        sys.exit(code)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TYPERS_OWN:
            raise
        except BaseException as error:  # also a panic of a library in Rust, and sys.exit
            command, debug = ctx.invoked_subcommand or "", bool(ctx.meta.get(DEBUG))
            code = ended(error, command, debug=debug, as_json=self.as_json)
            raise typer.Exit(code) from None


app = typer.Typer(
    name="loraprobe",
    cls=Guarded,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Tells whether composing LoRA adapters will work for your task, why, and what to do "
    "instead. Start with: loraprobe demo",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"loraprobe {__version__}")
        raise typer.Exit()


def _schema(wanted: bool) -> None:
    if wanted:
        import json

        from loraprobe.report.documents import json_schema

        typer.echo(json.dumps(json_schema(), indent=1))
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool,
        flag("Print the version.", None, "--version", "-V", "-v", callback=_version, is_eager=True),
    ] = False,
    json_schema: Annotated[
        bool,
        flag("Print the schema of --json.", None, "--json-schema", callback=_schema, is_eager=True),
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Exit codes: 0 likely works (or the command did its job), 1 unlikely or incompatible,
    2 wrong usage or unusable input, 3 inconclusive, 130 interrupted."""


def main(started: float | None = None) -> None:
    """The `loraprobe` command. started: when it began, by time.perf_counter; None: now."""
    STARTED[:] = [time.perf_counter() if started is None else started]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)
    app(prog_name="loraprobe")


def _interrupted(number: int, frame: Any) -> None:
    """Raises KeyboardInterrupt; the first time not before a running import is done.

    An exception in the middle of an import of torch can abort the whole process.
    """
    if number == signal.SIGINT:
        INTERRUPTIONS.append(number)
    if len(INTERRUPTIONS) == 1 and hasattr(signal, "setitimer") and _imports(frame):
        signal.signal(signal.SIGALRM, _interrupted)
        signal.setitimer(signal.ITIMER_REAL, 0.02)  # look again then
        return
    raise KeyboardInterrupt


def _imports(frame: Any) -> bool:
    """Whether an import is under way somewhere below this frame."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False
