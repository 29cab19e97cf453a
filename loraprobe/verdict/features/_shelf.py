"""How a feature is declared: a function with a description, on the shelf of its group."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from loraprobe.verdict.features._view import View

Function = Callable[[View], float | None]
Registry = dict[str, tuple[str, Function]]


class Feature(NamedTuple):
    """What a feature measures, as a phrase, and which kind of evidence it is."""

    description: str
    group: str  # "coverage" | "singles" | "weights" | "probe" | "task"


def on(shelf: Registry, description: str) -> Callable[[Function], Function]:
    """Puts a function on a shelf under its own name."""

    def put(function: Function) -> Function:
        name = function.__name__
        if name in shelf:
            raise ValueError(f"there are two features {name}")
        shelf[name] = (description, function)
        return function

    return put
