"""The declaration of an option, and the parser of its text on the command line."""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loraprobe.errors import UsageError

GROUPS = "Adapters", "Tasks", "Composition", "Evaluation", "Machine", "Output"  # in their order
ADAPTERS, TASKS, COMPOSITION, EVALUATION, MACHINE, OUTPUT = GROUPS


@dataclass(frozen=True)
class Declaration:
    """Name, help, parser and limits of one option.

    `flag` is its name on the command line, `repeats` whether it may be given several times,
    `least` and `most` bound a number, `read` parses a text of the command line.
    """

    group: str
    help: str
    flag: str | None = None
    short: str | None = None
    metavar: str | None = None
    repeats: bool = False
    least: float | None = None
    most: float | None = None
    read: Callable[[str, str], Any] | None = None


def _option(group: str, default: Any, help: str, **rest: Any) -> Any:
    """A field of a class of options with its declaration. One that holds a tuple repeats."""
    declared = Declaration(group, help, **{"repeats": isinstance(default, tuple), **rest})
    return dataclasses.field(default=default, metadata={"declaration": declared})


# Each makes a field of its group from a default, a help and the rest of its declaration.
adapter_option = functools.partial(_option, ADAPTERS)
task_option = functools.partial(_option, TASKS)
composition_option = functools.partial(_option, COMPOSITION)
evaluation_option = functools.partial(_option, EVALUATION)
machine_option = functools.partial(_option, MACHINE)
output_option = functools.partial(_option, OUTPUT)


@functools.cache
def declarations(kind: type) -> Mapping[str, Declaration]:
    """Name of a field -> its declaration, for a class of options, in order.

    The flag follows from the name where none is given.
    """
    found = {f.name: f.metadata["declaration"] for f in dataclasses.fields(kind) if f.metadata}
    return {
        name: dataclasses.replace(one, flag=one.flag or "--" + name.replace("_", "-"))
        for name, one in found.items()
    }


LEARNED = "learn", "learn:per=layer"  # how --weights are found


def read_weights(text: str, flag: str) -> tuple[float, ...] | str:
    """ "0.7,0.3" as numbers, or one of LEARNED."""
    if text.strip() in LEARNED:
        return text.strip()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(
            f"{flag} takes numbers with commas, such as 0.7,0.3, or {' or '.join(LEARNED)}, not "
            f"{text!r}."
        ) from None


def read_auto_or_count(text: str, flag: str) -> int | Literal["auto"]:
    """ "auto" or a positive whole number."""
    if text == "auto":
        return "auto"
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise UsageError(f"{flag} takes auto or a positive whole number, not {text!r}.")
    return int(text)


def read_named_file(text: str, flag: str) -> tuple[str, Path]:
    """ "NAME=FILE" as a pair."""
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise UsageError(f"{flag} takes NAME=FILE, not {text!r}.")
    return name, Path(file)


def read_executor(text: str, flag: str) -> str:
    """ "ray" or "ray://HOST:PORT"."""
    if not re.fullmatch(r"ray(://[^\s/]+)?", text):
        raise UsageError(f"{flag} takes ray or ray://HOST:PORT, not {text!r}.")
    return text


def as_given(kind: type, name: str, value: Any) -> Any:
    """The value of an option as its field holds it, from a Python keyword or the command line.

    A text is parsed where the option has a parser; a repeatable option takes a single value, too.
    """
    declared = declarations(kind).get(name)
    if declared is None:
        return value
    if isinstance(value, Mapping):
        return tuple(value.items())
    one = isinstance(value, (str, Path)) or not isinstance(value, Iterable)
    held = (value,) if one else tuple(value)
    if declared.read is not None:
        flag = declared.flag or name
        held = tuple(declared.read(v, flag) if isinstance(v, str) else v for v in held)
    return held[0] if one and not declared.repeats else held


def check_values(options: Any) -> None:
    """Raises UsageError for a value that its declaration does not allow."""
    kind: type = type(options)
    types = hints(kind)
    for name, declared in declarations(kind).items():
        value, flag, hint = getattr(options, name), declared.flag, types[name]
        if typing.get_origin(hint) is Literal and value not in typing.get_args(hint):
            allowed = ", ".join(typing.get_args(hint))
            raise UsageError(f"{flag} must be one of {allowed}, not {value!r}.")
        if wrong := _wrong_kind(value, hint):
            raise UsageError(f"{flag} takes {wrong}, not {value!r}.")
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        least, most = declared.least, declared.most
        if least is not None and most is not None and not least <= value <= most:
            raise UsageError(f"{flag} must lie between {least:g} and {most:g}, not {value}.")
        if least is not None and not value >= least:
            raise UsageError(f"{flag} must be at least {least:g}, not {value}.")


def _wrong_kind(value: Any, hint: Any) -> str:
    """The kind of value that an option takes, if the given one differs; "" if it is right."""
    kinds = typing.get_args(hint) or (hint,)
    if value is None or not {int, float, bool}.intersection(kinds):
        return ""
    if bool in kinds:
        return "" if isinstance(value, bool) else "True or False"
    texts = [t for kind in kinds for t in typing.get_args(kind) if isinstance(t, str)]
    number = isinstance(value, (int, float) if float in kinds else int)
    if value in texts or (number and not isinstance(value, bool)):
        return ""
    what = "a number" if float in kinds else "a whole number"
    return " or ".join([what, *texts])


@functools.cache
def hints(kind: type) -> Mapping[str, Any]:
    """Name of a field -> its type, for a class of options."""
    return typing.get_type_hints(kind)
