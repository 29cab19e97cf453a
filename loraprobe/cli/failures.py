"""What ended a command: one sentence on standard error, an exit code, JSON where it was asked for.

Exit code 1 is an answer, such as a verdict, so no error ends in it.
"""

from __future__ import annotations

import json
import os
import sys
from difflib import get_close_matches
from typing import Any

import typer

from loraprobe.cli.call import CALL
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

RESUMED = "; the same call with --resume goes on from what was finished."
WHOLE = ", and the output is there whole or not at all."
# What an interrupted command keeps, and how it goes on where the same call does not start again.
KEPT = {
    "inspect": RESUMED,
    "merge-and-eval": RESUMED,
    "screen": "; the same call with --resume goes on, and reads no adapter again.",
    "merge": WHOLE,
    "route": WHOLE,
    "convert": WHOLE,
    "lab": ", and what was finished is kept; the same call goes on.",
}
MEMORY_GONE = (
    "Memory ran out; close what else uses it, take --dtype bfloat16, fewer adapters or a smaller "
    "base model, or another --device."
)
PIPE_CLOSED = 141  # as a shell tells of a process that SIGPIPE ended
# typer's errors of usage, and its help for a call without arguments.
TYPERS_USAGE: Any = typer.BadParameter.__mro__[1]
HELP_SHOWN = "NoArgsIsHelpError"


def ended(error: BaseException, command: str = "") -> int:
    """Prints what ended a command, and returns the exit code."""
    if isinstance(error.__context__ if isinstance(error, SystemExit) else error, BrokenPipeError):
        _abandon(sys.stdout)
        return PIPE_CLOSED
    if type(error).__name__ == HELP_SHOWN:
        return 2
    # A library interrupted while it is imported may raise anything in the end.
    if CALL.interrupted or isinstance(error, KeyboardInterrupt):
        error = Interrupted(f"Interrupted{KEPT.get(command, '.')}")
    elif CALL.debug:
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
    if CALL.as_json:
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
