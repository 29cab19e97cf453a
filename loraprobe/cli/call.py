"""The call that this process runs: its words, when it began, what interrupts and what ends it.

It ends in one sentence on standard error and an exit code, and in a JSON document where that was
asked for. Exit code 1 is an answer, such as a verdict, so no error ends in it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import typer

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
from loraprobe.formatting import clean
from loraprobe.memory import is_out_of_memory
from loraprobe.secrets import map_texts, public_text

MEMORY_GONE = (
    "Memory ran out; close what else uses it, take --dtype bfloat16, fewer adapters or a smaller "
    "base model, or another --device."
)
PIPE_CLOSED = 141  # as a shell tells of a process that SIGPIPE ended
# typer's errors of usage, and its help for a call without arguments.
TYPERS_USAGE: Any = typer.BadParameter.__mro__[1]
HELP_SHOWN = "NoArgsIsHelpError"


@dataclass
class Call:
    """What is known of a call of the command line.

    `words` are those that were typed, with those of --config; `started` is when it began, by
    time.perf_counter, None if only a command of it is run.
    """

    words: list[str] = field(default_factory=list)
    started: float | None = None
    interrupted: bool = False


CALL = Call()


def interrupt(number: int, frame: Any) -> None:
    """Raises KeyboardInterrupt; the first time not before a running import is done.

    An exception in the middle of an import of torch can abort the whole process.
    """
    first = not (CALL.interrupted and number in (signal.SIGINT, signal.SIGTERM))
    CALL.interrupted = True
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
    elif "--debug" in CALL.words:
        typer.echo(trace(error, _to_report), err=True, nl=False)
    if isinstance(error, TYPERS_USAGE):
        error = UsageError(_usage(error))
    if is_out_of_memory(error):
        error = OutOfMemory(MEMORY_GONE)
    if isinstance(error, OSError):
        _abandon(sys.stdout)
    told = reported(error)
    _print(told)
    return told.exit_code


def _usage(error: Any) -> str:
    """A sentence from typer's error of usage, with the nearest name or where to read on."""
    message = str(error.format_message()).replace("option: ", "option ")
    message = message.partition(" (Possible options:")[0].rstrip(".")
    message, _, near = message.partition(". Did you mean ")
    options = getattr(error, "possibilities", None) or ()
    close = get_close_matches(getattr(error, "option_name", ""), options, 1)
    near = near.rstrip("?") or "".join(close)
    if near:
        return f"{message}: did you mean {near}?"
    path = error.ctx.command_path if error.ctx is not None else "loraprobe"
    return f"{message}; see {path} --help."


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
