"""Options as keywords of the Python functions: which each takes, and how its errors call them."""

from __future__ import annotations

import functools
import inspect
import json
import os
import re
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar, cast

from loraprobe.errors import LoraprobeError, UsageError, in_shell
from loraprobe.formatting import nearest, wrapped

NUMBER = re.compile(r"N|True|-?[\d.]+")  # which stands without quotes
Function = TypeVar("Function", bound=Callable[..., Any])


def takes(options: str = "") -> Callable[[Function], Function]:
    """Gives a Python function these options as keywords beside its own; its docstring lists them.

    Other keywords raise UsageError, and errors name options as keywords.
    """

    def decorate(function: Function) -> Function:
        own = [name for name in inspect.signature(function).parameters if name != "options"]
        known = [*own, *options.split()]
        if options:
            listed = f"options: {', '.join(options.split())} (docs/options.md)."
            text = inspect.cleandoc(function.__doc__ or "")
            function.__doc__ = "\n".join([text, "", *wrapped(listed, 100)])

        @functools.wraps(function)
        def called(*given: Any, **keywords: Any) -> Any:
            try:
                _check_list(function.__name__, given, own)
                for name in keywords:
                    if name not in known:
                        hint = nearest(name, known)
                        raise UsageError(f"{function.__name__} has no option {name!r}: {hint}")
                return function(*given, **keywords)
            except LoraprobeError as error:
                inputs = ("base", "tasks", "probe")  # which errors may name
                error.written = functools.partial(_in_python, known={*known, *inputs})
                raise

        return cast(Function, called)

    return decorate


def _check_list(function: str, given: Sequence[Any], own: Sequence[str]) -> None:
    """Raises UsageError for adapters that are given one by one and not as a list."""
    positional = 2 if own[1:2] == ["method"] else 1
    for one in given[1:]:
        spec = isinstance(one, str) and not (os.path.isdir(one) or one.startswith((".", "/", "@")))
        if own[:1] == ["adapters"] and (not spec or len(given) > positional):
            raise UsageError(f"{function} takes its adapters as one list: give {function}([a, b]).")


def _in_python(option: str, value: str, known: Collection[str]) -> str:
    """An option as a keyword, such as `allow=["base-mismatch"]`; one that Python lacks stays."""
    from loraprobe.options import hints, repeats

    flag = option.replace("-", "_")
    name = next((name for name in (flag, f"{flag}s") if name in known), "")
    if not name:
        return in_shell(option, value)
    if not value:
        return name
    held: Any = value.strip("'")
    if name in ("fields", "router_prompts"):
        held = dict(pair.partition("=")[::2] for pair in held.split(","))
    elif name == "tasks" or (name in hints() and repeats(name)):
        held = [held]
    return f"{name}={value if NUMBER.fullmatch(value) else json.dumps(held, ensure_ascii=False)}"
