"""Enables the run-time check of the annotated shapes of the numerical core.

Only tests pay for it. It has to happen before the first import of those modules, so conftest.py
does it at its top. A function without a shape in its annotations is checked by beartype alone: what
jaxtyping adds, a namespace of sizes for each call, is most of the cost.
"""

import builtins
import functools
import inspect
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

CHECKED = (
    "loraprobe.lora.lowrank",
    "loraprobe.lora.grams",
    "loraprobe.lora.spaces",
    "loraprobe.extensions.methods",
    "loraprobe.merging",
    "loraprobe.routing",
)

# An int may stand for a float, as type checkers have it.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
PLAIN: Any = beartype(
    conf=BeartypeConf(is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError)
)
jaxtyped = jaxtyping.jaxtyped

# The first calls of a function in each test are checked for shapes, since a test that calls it a
# thousand times would spend most of its time on the check. A fixture empties CALLS.
MOST = 3
CALLS: Counter[Callable[..., Any]] = Counter()


def check_shapes() -> None:
    """Wraps the functions and dataclasses of each module of CHECKED when it is imported."""
    jaxtyping.jaxtyped = checked  # which the hook writes into the modules
    jaxtyping.install_import_hook(CHECKED, CHECKER)


def checked(*, typechecker: Any) -> Callable[[Any], Any]:
    """The decorator of a function or class."""

    def decorate(given: Any) -> Any:
        if inspect.isclass(given):
            plain_init = given.__init__
            made = jaxtyped(given, typechecker=typechecker)
            if made.__init__ is not plain_init:
                made.__init__ = first_calls(plain_init, made.__init__)
            return made
        if not inspect.isfunction(given) or inspect.isgeneratorfunction(given):
            return jaxtyped(given, typechecker=typechecker)
        if "<locals>" in given.__qualname__:
            return given  # it is made anew in every call, and the check would be too
        if not has_shapes(given):
            return PLAIN(given)
        return first_calls(given, jaxtyped(given, typechecker=typechecker))

    return decorate


def first_calls(plain: Callable[..., Any], thorough: Callable[..., Any]) -> Callable[..., Any]:
    """Calls `thorough` at first in each test, and `plain` after MOST calls."""

    @functools.wraps(plain)
    def call(*arguments: Any, **options: Any) -> Any:
        CALLS[plain] += 1
        return (thorough if CALLS[plain] <= MOST else plain)(*arguments, **options)

    return call


def has_shapes(function: Any) -> bool:
    """Whether an annotation holds a shape, or a name that is not known yet."""
    text = " ".join(map(str, function.__annotations__.values()))
    names = set(re.findall(r"(?<![.\w])[A-Za-z_]\w*", text))
    known = {**vars(builtins), **function.__globals__}
    known |= dict.fromkeys(function.__qualname__.split("."))
    return any(
        name not in known
        or (
            isinstance(known[name], type)
            and issubclass(known[name], (jaxtyping.AbstractDtype, jaxtyping.AbstractArray))
        )
        for name in names
    )
