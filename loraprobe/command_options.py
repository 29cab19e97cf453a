"""Which fields of `Options` each command takes, on the command line and as Python keywords."""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar, cast

from loraprobe.declarations import TASKS, declarations, hints
from loraprobe.errors import LoraprobeError, UsageError
from loraprobe.formatting import nearest
from loraprobe.options import Options

Function = TypeVar("Function", bound=Callable[..., Any])

# How the file of a task is read.
LAYOUT = " ".join(n for n, one in declarations(Options).items() if one.group == TASKS)
INSPECT = (
    f"{LAYOUT} "
    "per_module diagnostics allow serve device dtype batch_size threads limit max_new_tokens "
    "metric run_unsafe_code margin prior calibration chat_template trust_remote_code seed "
    "executor resume"
)
MERGE = (
    f"{LAYOUT} methods weights balance subtract space rank dtype device limit allow threads seed"
)
CONVERT = "allow threads"
ROUTE = (
    f"{LAYOUT} "
    "routers router_prompts weights balance subtract limit "
    "chat_template device quantize device_map batch_size threads allow trust_remote_code seed"
)
EVALUATE = (
    f"{LAYOUT} "
    "methods routers systems space rank weights balance "
    "subtract router_prompts metric run_unsafe_code margin retention prior calibration "
    "limit all_items max_new_tokens chat_template device dtype quantize device_map batch_size "
    "threads per_module diagnostics allow trust_remote_code seed executor resume"
)
SCREEN = (
    f"{LAYOUT} "
    "items keep budget methods routers balance space rank metric run_unsafe_code margin retention "
    "prior calibration limit all_items max_new_tokens chat_template device dtype quantize "
    "device_map batch_size threads allow trust_remote_code seed executor resume"
)


def takes(fields: str) -> Callable[[Function], Function]:
    """Gives a Python function the options of a command as keywords, and documents each.

    fields: names of fields with spaces between them. The function raises UsageError for any other
    keyword.
    """

    def decorate(function: Function) -> Function:
        own = inspect.signature(function).parameters
        names = fields.split()
        options = [name for name in names if not {name, name.removesuffix("s")} & own.keys()]
        known = [name for name in own if name != "options"] + options
        declared, plain = declarations(Options), Options()
        lines = ["", "", "options:"]
        for name in options:
            default = getattr(plain, name)
            lines.append(f"    {name}: {declared[name].help} Default: {default!r}.")
        if "resume" in options:  # the command line keeps them in LORAPROBE_CACHE
            known.append("state")
            lines.append("    state: Directory of the results that `resume` uses. Default: None.")

        @functools.wraps(function)
        def checked(*given: Any, **keywords: Any) -> Any:
            _check_list(function.__name__, given, [*own])
            for name in keywords:
                if name not in known:
                    hint = nearest(name, known)
                    raise UsageError(f"{function.__name__} has no option {name!r}: {hint}")
            return function(*given, **keywords)

        checked.__doc__ = (inspect.getdoc(function) or "") + "\n".join(lines)
        return cast(Function, speaks_python(checked, known))

    return decorate


def speaks_python(function: Function, known: Sequence[str] = ()) -> Function:
    """The function, whose errors name options as its keywords.

    known: the keywords; those of its signature if there are none.
    """
    names = {*(known or inspect.signature(function).parameters), "base", "tasks", "probe"}

    @functools.wraps(function)
    def called(*given: Any, **keywords: Any) -> Any:
        try:
            return function(*given, **keywords)
        except LoraprobeError as error:
            error.wording = functools.partial(_in_python, known=names)
            raise

    return cast(Function, called)


def _check_list(function: str, given: Sequence[Any], own: Sequence[str]) -> None:
    """Raises UsageError for adapters that are given one by one and not as a list."""
    positional = 2 if own[1:2] == ["method"] else 1
    for one in given[1:]:
        spec = isinstance(one, str) and not (os.path.isdir(one) or one.startswith((".", "/", "@")))
        if own[:1] == ["adapters"] and (not spec or len(given) > positional):
            raise UsageError(f"{function} takes its adapters as one list: give {function}([a, b]).")


# A word after an option that is not its value: options are the subject of many messages.
_NO_VALUE = re.compile(
    r"(?:a|and|ask|both|get|must|of|or|out|to|where|with|[a-z]{2,}s)\b(?<!ties)(?<!breadcrumbs)"
)
_OPTION = re.compile(r"--([a-z][a-z-]*[a-z])(?: ([^\s\"';,()]+))?")


def _in_python(message: str, known: Collection[str]) -> str:
    """A message with options as keywords: `allow=["base-mismatch"]` of --allow base-mismatch.

    Options that Python does not have stay as they are.
    """
    declared, types = declarations(Options), hints(Options)

    def keyword(found: re.Match[str]) -> str:
        flag, text = found[1].replace("-", "_"), found[2] or ""
        name = next((name for name in (flag, f"{flag}s") if name in known), "")
        value = text.rstrip(".:")
        field = next((one for one in (name, f"{name}s") if one in declared), name)
        if not name:
            return found[0]
        if not value or _NO_VALUE.fullmatch(value):
            flagged = types.get(field) is bool and not value
            return f"{name}=True" if flagged else f"{name} {text}".rstrip()
        numbers = re.fullmatch(r"N|-?[\d.]+(,-?[\d.]+)*", value)
        shown = value if numbers else f'"{value}"'
        key, equals, held = value.partition("=")
        several = name == field and field in declared and declared[field].repeats
        if equals and "{" not in value and field in ("fields", "router_prompts"):
            shown = f'{{"{key}": "{held}"}}'
        elif several or name == "tasks" or (numbers and "," in value):
            shown = f"[{shown}]"
        return f"{name}={shown}{text[len(value) :]}"

    return _OPTION.sub(keyword, message)
