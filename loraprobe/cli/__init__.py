"""The command line: its commands, each in a module beside this file, and its exit codes.

A call ends in one sentence on standard error and an exit code where an error or an interrupt ends
it, and in a JSON document where that was asked for. Exit code 1 is an answer, such as a verdict, so
no error ends in it.
"""

from __future__ import annotations

import codecs
import functools
import importlib
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from difflib import get_close_matches
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from loraprobe._version import __version__
from loraprobe.cli.parameters import Configured, DebugOption, Plain, of_command, setting
from loraprobe.cli.running import CALL
from loraprobe.errors import (
    Defect,
    Interrupted,
    LoraprobeError,
    OutOfMemory,
    UsageError,
    as_document,
    reported,
    trace,
)
from loraprobe.formatting import clean, flowing
from loraprobe.memory import is_out_of_memory
from loraprobe.options import commands
from loraprobe.secrets import map_texts, public_text

MEMORY_GONE = (
    "Memory ran out; close what else uses it, take --dtype bfloat16, fewer adapters or a smaller "
    "base model, or another --device."
)
# What a stream is written with whose encoding lacks a character, and how these look then.
PLAIN = "loraprobe.plain"
LOOKS = {"▄": "#", "×": "x", "–": "-", "…": "~", "→": ">", "±": "+-", "·": "-", "─": "-"}
PIPE_CLOSED = 141  # as a shell tells of a process that SIGPIPE ended
# typer's errors of usage, and its help for a call without arguments.
TYPERS_USAGE: Any = typer.BadParameter.__mro__[1]
HELP_SHOWN = "NoArgsIsHelpError"

COMMANDS = commands()
GROUPS = {"task": "Work with a file of questions."}
SECTIONS = "Start", "Make", "Library", "Other"  # in the order of the help
NAMES = {
    name.partition(" ")[0]: section
    for section in dict.fromkeys([*SECTIONS, *(one.section for one in COMMANDS.values())])
    for name, one in COMMANDS.items()
    if one.section == section
}


@functools.cache
def command_of(name: str) -> Any:
    """The command or group that typer runs, whose module is imported here."""
    inside = [known for known in COMMANDS if known.partition(" ")[0] == name]
    app = typer.Typer(
        name=name,
        cls=Group,
        help=GROUPS.get(name),
        no_args_is_help=name in GROUPS,
        add_completion=False,
    )
    for known in inside:
        function = function_of(known)
        passed_on = known == "lab"  # which hands words on to commands of its own
        app.command(
            known.rpartition(" ")[2],
            cls=Configured,
            help=flowing(function.__doc__),
            epilog="\n\n".join(("Examples:", *(f"  {call}" for call in COMMANDS[known].examples))),
            add_help_option=not passed_on,
            context_settings={"allow_extra_args": passed_on, "ignore_unknown_options": passed_on},
        )(of_command(COMMANDS[known], function))
    made = typer.main.get_group if name in GROUPS else typer.main.get_command
    return made(app)  # a group stays one where it has a single command


def function_of(name: str) -> Callable[..., None]:
    """The function of a command; its module is imported here."""
    module, _, function = COMMANDS[name].function.rpartition(".")
    command: Callable[..., None] = getattr(importlib.import_module(module), function)
    return command


def help_of(name: str) -> str:
    """What a command or group does, as its help begins."""
    return GROUPS.get(name) or flowing(function_of(name).__doc__)


def interrupt(number: int, frame: Any) -> None:
    """Raises KeyboardInterrupt; the first time not before a running import is done.

    An exception in the middle of an import of torch can abort the whole process.
    """
    asked = number in (signal.SIGINT, signal.SIGTERM)
    first = not (CALL.interrupted and asked)
    if asked:
        CALL.interrupted = number
    if first and hasattr(signal, "setitimer") and _imports(frame):
        signal.signal(signal.SIGALRM, interrupt)
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


def ended(error: BaseException) -> int:
    """Prints what ended a command, and returns the exit code."""
    if isinstance(error.__context__ if isinstance(error, SystemExit) else error, BrokenPipeError):
        _abandon(sys.stdout)
        return PIPE_CLOSED
    if type(error).__name__ == HELP_SHOWN:
        return 2
    # A library interrupted while it is imported may raise anything in the end.
    if CALL.interrupted or isinstance(error, KeyboardInterrupt):
        error = Interrupted("Interrupted.")
        error.exit_code = 128 + (CALL.interrupted or signal.SIGINT)  # as shells tell of a signal
    elif "--debug" in CALL.words:
        typer.echo(trace(error, _to_report), err=True, nl=False)
    if isinstance(error, TYPERS_USAGE):
        error = _usage(error)
    if is_out_of_memory(error):
        error = OutOfMemory(MEMORY_GONE)
    if isinstance(error, OSError):
        _abandon(sys.stdout)
    told = reported(error)
    told.manual = f"see {_called()} --help."
    _print(told)
    return told.exit_code


def _in_plain(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that a stream cannot write: JSON's escapes, which a document
    needs, or for people what looks like them."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    looks = {} if "--json" in CALL.words else LOOKS
    return "".join(looks.get(one) or json.dumps(one)[1:-1] for one in lacking), error.end


codecs.register_error(PLAIN, _in_plain)


def _called() -> str:
    """The command that was called, as it is typed."""
    words = [word for word in CALL.words if not word.startswith("-")]
    name = " ".join(words[:2]) if " ".join(words[:2]) in COMMANDS else " ".join(words[:1])
    return f"loraprobe {name}" if name in (*NAMES, *COMMANDS) else "loraprobe"


def _usage(error: Any) -> UsageError:
    """The error of typer's error of usage, with the nearest name or where to read on."""
    message = str(error.format_message()).replace("option: ", "option ")
    message = message.partition(" (Possible options:")[0].rstrip(".")
    message, _, near = message.partition(". Did you mean ")
    if unknown := getattr(error, "option_name", ""):  # the dashes of an option are no likeness
        options = {one.lstrip("-"): one for one in getattr(error, "possibilities", None) or ()}
        near = "".join(options[one] for one in get_close_matches(unknown.lstrip("-"), options, 1))
    if near:
        return UsageError(f"{message}:", f"did you mean {near}?")
    path = error.ctx.command_path if error.ctx is not None else _called()
    return UsageError(f"{message}; see {path} --help.")


def _print(error: LoraprobeError) -> None:
    """One sentence on standard error, free of control characters; with --json a document too.

    What others will read, a document or the report of a defect, has no absolute path.
    """
    text = _to_report(str(error)) if isinstance(error, Defect) else clean(error)
    typer.echo(f"error: {' '.join(text.splitlines())}", err=True)
    if "--json" in CALL.words:
        print(json.dumps(map_texts(as_document(error), _to_report), indent=1), flush=True)


def _to_report(text: str) -> str:
    """A text with no secret, and with only the last part of an absolute path or of one given."""
    for place in sorted(filter(None, sys.path), key=len, reverse=True):  # of modules in a traceback
        text = text.replace(f'File "{os.path.join(place, "")}', 'File "')
    words = (part for word in CALL.words for part in (word, word.partition("=")[2]))
    given = [os.path.abspath(os.path.expanduser(word)) for word in words if os.sep in word]
    names = {path: os.path.basename(path) for path in (*given, os.getcwd()) if len(path) > 2}
    return clean(public_text(text, names | {os.path.expanduser("~"): "~"}))


def _abandon(stream: Any) -> None:
    """Lets Python close a stream that cannot be written, without a complaint and an exit code."""
    try:
        stream.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (AttributeError, ValueError):  # no stream, or a closed one
        return


# What typer itself turns into an exit code, or main into a sentence.
TYPERS_OWN: tuple[type[Exception], ...] = (typer.Exit, TYPERS_USAGE)


class Group(Plain, TyperGroup):
    """A group of commands."""


class Guarded(Group):
    """Turns every error of a command into one sentence on standard error and an exit code."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = dict.fromkeys(NAMES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command, made when it is called; None for an unknown name."""
        return self.commands[cmd_name] or command_of(cmd_name) if cmd_name in NAMES else None

    def format_help(self, ctx: Any, formatter: Any) -> None:
        # The list of commands shows no option of theirs.
        outlines = {
            name: TyperCommand(name, help=help_of(name), rich_help_panel=section)
            for name, section in NAMES.items()
        }
        whole, self.commands = self.commands, outlines
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
                stream.reconfigure(errors=PLAIN)
        given = args[0] if args else extra.get("args")
        CALL.words = sys.argv[1:] if given is None else list(given)
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
        except BaseException as error:  # before a command was found, or the end as it should be
            if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
                raise
            code = ended(error)
        sys.exit(code)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except TYPERS_OWN:
            raise
        except BaseException as error:  # also a panic of a library in Rust, and sys.exit
            raise typer.Exit(ended(error)) from None


app = typer.Typer(
    name="loraprobe",
    cls=Guarded,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Tells whether composing LoRA adapters will work for your task, why, and what to do "
    "instead. Start with: loraprobe demo",
    epilog="The environment may set the options of Machine: LORAPROBE_DEVICE=cpu for --device cpu.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"loraprobe {__version__}")
        raise typer.Exit()


def _schema(wanted: bool) -> None:
    if wanted:
        from loraprobe.report.documents import json_schema

        typer.echo(json.dumps(json_schema(), indent=1))
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool,
        setting(
            " ",
            "Print the version.",
            None,
            "--version",
            callback=_version,
            is_eager=True,
        ),
    ] = False,
    json_schema: Annotated[
        bool,
        setting(
            " ",
            "Print the schema of --json.",
            None,
            "--json-schema",
            callback=_schema,
            is_eager=True,
        ),
    ] = False,
    debug: DebugOption = False,
) -> None:
    """Exit codes: 0 likely works (or the command did its job), 1 unlikely or incompatible (or what
    verify compared differs), 2 wrong usage or unusable input, 3 inconclusive, 130 interrupted,
    143 ended by SIGTERM."""


def main(started: float | None = None) -> None:
    """The `loraprobe` command. started: when it began, by time.perf_counter; None: now."""
    CALL.started = time.perf_counter() if started is None else started
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, interrupt)
    app(prog_name="loraprobe")
