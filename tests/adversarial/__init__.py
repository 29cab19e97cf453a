"""Inputs that once gave a wrong answer without a warning, a hang, a loss of files or a traceback.

Each module of this folder holds the cases of one area. A case is a function that takes an empty
directory, calls loraprobe there as a user would, and returns the outcome in a few words: an exit
code and, if that says too little, a code or a value. `before` is the outcome of the first version
(commit 2655cad), `now` the required outcome. tests/pipeline/test_adversarial.py runs every case,
and `python tests/adversarial/table.py` writes docs/adversarial.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One hostile or careless input, the outcome of the first version, and the required outcome."""

    area: str
    name: str
    what: str
    before: str
    now: str
    act: Callable[[Path], str]
    slow: bool = False


CASES: dict[str, Case] = {}


def case(
    name: str, what: str, *, before: str, now: str, slow: bool = False
) -> Callable[[Callable[[Path], str]], Callable[[Path], str]]:
    """Registers a case under the name of the module that defines it."""

    def register(act: Callable[[Path], str]) -> Callable[[Path], str]:
        area = act.__module__.rpartition(".")[2].replace("_", " ")
        if name in CASES:
            raise ValueError(f"There are two cases {name!r}.")
        CASES[name] = Case(area, name, what, before, now, act, slow)
        return act

    return register


def outcome(*arguments: object, input: str | None = None) -> str:
    """The outcome of a command line: `exit N`, or `traceback NAME` for an exception.

    It runs inside this process, without the time of a start-up.
    """
    from typer.testing import CliRunner

    from loraprobe.cli import app

    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=input)
    unexpected = result.exception is not None and not isinstance(result.exception, SystemExit)
    return (
        f"traceback {type(result.exception).__name__}" if unexpected else f"exit {result.exit_code}"
    )
