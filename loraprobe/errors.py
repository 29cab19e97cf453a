"""The errors. A message is a sentence that names the thing and the cure; a defect takes two."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

# An option and its value, which "=" joins. Cures of findings have a space before a code or a name,
# which a dash, a slash or the like tells from another word.
_OPTION = re.compile(r"(--[a-z][a-z-]*)(?:=([^\s;)]*[^\s;,).:])| (\w+[-_/:]\S*\w))?")
_CALL = re.compile(r"\bloraprobe [a-z-]+ .*?(?=; |, |\. |\.?$)")  # which is typed as it stands

# Module -> the package whose defect an exception in it is; extensions of others join them.
PACKAGES = {"loraprobe": "loraprobe", "loraprobe_lab": "loraprobe"}


class LoraprobeError(Exception):
    """The base of all errors that loraprobe reports to its user, as one sentence.

    message: what is wrong and, behind its last "; ", what to do. cure: what to do, where no "; "
    comes before it; it follows the message. note: what follows the cure. An error without a cure
    ends with the `remedy` of its kind, or else with `manual`, where to read on. `code` names the
    kind for scripts. Options are named as `--option=VALUE`; `in_python` names them as keywords.
    """

    exit_code = 2
    code = "error"
    remedy = ""
    manual = "see loraprobe --help, or help(loraprobe) in Python."

    def __init__(self, message: str = "", cure: str = "", note: str = "") -> None:
        super().__init__(message, cure, note)
        self.keywords: Mapping[str, str] = {}

    def in_python(self, function: str, keywords: Mapping[str, str]) -> None:
        """Names options as a function of Python does. keywords: option -> the function's own."""
        self.keywords = keywords
        self.manual = f"see help(loraprobe.{function})."

    def at(self, place: str) -> Self:
        """The same error of a place, such as "t.jsonl, line 3", which its sentence begins with."""
        message, cure, note = self.args
        return type(self)(f"{place}: {message}", cure, note)

    def _spelled(self, text: str) -> str:
        """A text with its options as whoever made the call writes them."""
        typed = [] if not self.keywords else [call.span() for call in _CALL.finditer(text)]

        def spelled(option: re.Match[str]) -> str:
            name, joined, apart = option.groups()
            keyword, value = self.keywords.get(name), joined or apart
            if keyword is None or any(a <= option.start() < z for a, z in typed):
                return f"{name} {joined}" if joined else option[0]
            return keyword if value is None else f"{keyword}={_literal(value, keyword)}"

        return _OPTION.sub(spelled, text)

    def _parts(self) -> tuple[str, str]:
        """What is wrong, with what joins it to what to do, and what to do."""
        message, cure = map(self._spelled, self.args[:2])
        if cure:
            return message, cure
        problem, mark, cure = message.rpartition("; ")
        if mark:
            return f"{problem};", cure
        return f"{message.removesuffix('.')};", self.remedy or self.manual

    def __str__(self) -> str:
        return " ".join((*self._parts(), self.args[2])).rstrip()

    @property
    def problem(self) -> str:
        """What is wrong."""
        return self._parts()[0].rstrip(" ;:")

    @property
    def cure(self) -> str:
        """What to do."""
        return self._parts()[1]


def _literal(value: str, keyword: str) -> str:
    """A value of the command line as Python has it; words in capitals stand for what goes there."""
    if keyword in ("prompts", "router_prompts"):
        return "{" + ": ".join(map(_literal, value.split("=", 1), ("", ""))) + "}"
    return value if re.fullmatch(r"[A-Z]+|[\d.]+", value) else repr(value)


class UsageError(LoraprobeError):
    """The call itself is wrong: an unknown method, option or value."""

    code = "usage"


class BadReference(LoraprobeError):
    """A reference that names neither a directory nor a Hub repository."""

    code = "reference"
    remedy = "check the reference."


class HubError(LoraprobeError):
    """The Hub refused a request (missing, gated, rate limited) or gave a broken answer."""

    code = "hub"
    remedy = "check the reference, or try again later."


class EngineError(LoraprobeError):
    """What answers the questions in place of transformers does not answer as it should."""

    code = "engine"
    remedy = "check that it runs."


class AdapterError(LoraprobeError):
    """An adapter's files cannot be read."""

    code = "adapter"
    remedy = "correct that file, or get the adapter again from its author."


class UnsupportedAdapter(AdapterError):
    """An adapter that is read, but cannot be used without losing part of it."""

    code = "unsupported-adapter"
    remedy = "leave this adapter out."


class BaseError(LoraprobeError):
    """A base model cannot be found, read or loaded."""

    code = "base"
    remedy = "give another base with --base."


class TaskError(LoraprobeError):
    """A task or probe file has a bad line."""

    code = "task"
    remedy = "correct that file."


class CompatibilityError(LoraprobeError):
    """Adapters, or adapters and base, do not fit together."""

    code = "incompatible"
    remedy = "take adapters, and a base, that fit together."


class OutputError(LoraprobeError):
    """An output exists already or cannot be written."""

    code = "output"
    remedy = "choose another name."


class OutOfMemory(LoraprobeError):
    """A merge, a model or a batch of one does not fit into memory."""

    code = "out-of-memory"


class Refused(LoraprobeError):
    """The system refuses a file or a device."""

    code = "system"


class Incomplete(LoraprobeError):
    """A package cannot be imported."""

    code = "installation"


class Defect(LoraprobeError):
    """An exception that loraprobe should not let through."""

    code = "defect"


class Interrupted(LoraprobeError):
    """The user stopped the command."""

    exit_code = 130
    code = "interrupted"
    remedy = "the same call starts again, or goes on with --resume where it has that option."


def unwritable(path: Path, error: Exception, cure: str = "choose another place") -> OutputError:
    """The error of a file or directory that the system does not write."""
    why = getattr(error, "strerror", None) or str(error) or "no reason was given"
    # safetensors says "Error while serializing: I/O error: No space left (os error 28)"
    why = re.sub(r"^.*I/O error: |\s*\(os error \d+\)", "", why)
    return OutputError(f"{path} cannot be written: {why}; {cure}.")


def reported(error: BaseException) -> LoraprobeError:
    """The error that is reported for any exception: its kind, its place, and what to do.

    A refused file or device and a package that cannot be imported are problems of the machine;
    everything else is a defect of loraprobe, or of the extension in which it was raised.
    """
    if isinstance(error, LoraprobeError):
        return error
    place, package = _place(error)
    text = " ".join(str(error).split())[:300].rstrip(".")
    what = f"{type(error).__name__}{f' ({text})' if text else ''}{place}"
    if isinstance(error, OSError) and error.errno is not None:
        return Refused(
            f"The system refuses a file or a device: {what}; free or permit it and try again."
        )
    if isinstance(error, ImportError):
        return Incomplete(
            f"A package cannot be imported: {what}; install {package} again with its packages."
        )
    return Defect(
        f"Unexpected {what}.",
        f"This is a defect of {package}: please report it with what the same call prints with "
        "--debug.",
    )


def as_document(error: LoraprobeError) -> dict[str, Any]:
    """The JSON object that `--json` prints for an error."""
    message, cure = (" ".join(text.splitlines()) for text in (str(error), error.cure))
    return {"error": {"code": error.code, "message": message, "cure": cure}}


def trace(error: BaseException, clean: Callable[[str], str] = str) -> str:
    """The traceback for --debug with suppressed causes; `clean` is applied to the text."""
    one: BaseException | None = error
    for _ in range(20):
        if one is None:
            break
        one.__suppress_context__ = False
        one = one.__cause__ or one.__context__
    return clean("".join(traceback.format_exception(error)))


def _place(error: BaseException) -> tuple[str, str]:
    """Module and line of an extension's innermost frame, else of loraprobe's, as a part of a
    sentence, and the package that has it; no place where neither has one."""
    place, package, frame = "", "loraprobe", error.__traceback__
    while frame is not None:
        module = frame.tb_frame.f_globals.get("__name__", "")
        own = PACKAGES.get(module.partition(".")[0], "")
        if own and (own != "loraprobe" or package == own):
            place, package = f" in {module}, line {frame.tb_lineno}", own
        frame = frame.tb_next
    return place, package
