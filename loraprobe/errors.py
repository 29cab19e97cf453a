"""The tree of errors. Every message is one sentence that names the thing and the cure.

LoraprobeError                  exit code 2
├── UsageError                  the call itself: an unknown method, option or value
├── ReferenceError_             a reference that is neither a directory nor a Hub repository
├── HubError                    the Hub refused: missing, gated, rate limited, broken body
├── AdapterError                an adapter that cannot be read
│   └── UnsupportedAdapter      one that can be read but whose mathematics would be lost
├── BaseError                   a base model that cannot be found, read or loaded
├── TaskError                   a task or probe file with a bad line
├── CompatibilityError          adapters (and base) that do not fit together
├── OutputError                 an output that exists, or cannot be written
└── OutOfMemory                 a merge, a model or a batch of one does not fit into memory
"""

from __future__ import annotations

import traceback
from collections.abc import Callable


class LoraprobeError(Exception):
    """The base of all errors that loraprobe reports to its user."""

    exit_code = 2


class UsageError(LoraprobeError):
    """The call itself is wrong."""


class ReferenceError_(LoraprobeError):
    """A reference that names neither a directory nor a Hub repository."""


class HubError(LoraprobeError):
    """The Hub refused a request or gave a broken answer."""


class AdapterError(LoraprobeError):
    """An adapter's files cannot be read."""


class UnsupportedAdapter(AdapterError):
    """An adapter that is read, but cannot be used without losing part of it."""


class BaseError(LoraprobeError):
    """A base model cannot be found, read or loaded."""


class TaskError(LoraprobeError):
    """A task or probe file has a bad line."""


class CompatibilityError(LoraprobeError):
    """Adapters, or adapters and base, do not fit together."""


class OutputError(LoraprobeError):
    """An output exists already or cannot be written."""


class OutOfMemory(LoraprobeError):
    """A merge, a model or a batch of one does not fit into memory."""


def unexpected(error: BaseException) -> str:
    """One sentence for any other exception: its kind, its place, and what to do.

    A refused file or device and a package that cannot be imported are problems of the machine;
    everything else is a defect of loraprobe.
    """
    text = " ".join(str(error).split())[:300].rstrip(".")
    what = f"{type(error).__name__}{f' ({text})' if text else ''}{_place(error)}"
    if isinstance(error, OSError) and error.errno is not None:
        return f"The system refuses a file or a device: {what}; free or permit it and try again."
    if isinstance(error, ImportError):
        return f"A package cannot be imported: {what}; install loraprobe again with its packages."
    return (
        f"Unexpected {what}. This is a defect of loraprobe: please report it with what the "
        "same call prints with --debug."
    )


def trace(error: BaseException, clean: Callable[[str], str] = str) -> str:
    """The traceback for --debug, with the causes that a sentence stands for; `clean` passes it."""
    one: BaseException | None = error
    for _ in range(20):
        if one is None:
            break
        one.__suppress_context__ = False
        one = one.__cause__ or one.__context__
    return clean("".join(traceback.format_exception(error)))


def _place(error: BaseException) -> str:
    """Where loraprobe's own innermost frame stands, as a part of a sentence; "" for none."""
    place, frame = "", error.__traceback__
    while frame is not None:
        module = frame.tb_frame.f_globals.get("__name__", "")
        if module.partition(".")[0] in ("loraprobe", "loraprobe_lab"):
            place = f" in {module}, line {frame.tb_lineno}"
        frame = frame.tb_next
    return place
