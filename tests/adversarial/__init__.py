"""Inputs that once gave a wrong answer without a warning, a hang, a loss of files or a traceback.

docs/adversarial.md is the table of the cases: the input, the outcome of the first version, and the
required outcome. Each module of this folder holds the cases of one area. A case is a function that
takes an empty directory, calls loraprobe there as a user would, and returns the outcome in a few
words: an exit code and, if that says too little, a code or a value.
tests/core/pipeline/test_adversarial.py runs every case and compares it with the page.
"""

import functools
import importlib
import pkgutil
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from making import call

PAGE = Path(__file__).parents[2] / "docs" / "adversarial.md"
Act = Callable[[Path], str]
CASES: dict[str, Act] = {}
SLOW: set[str] = set()


def case(name: str, *, slow: bool = False) -> Callable[[Act], Act]:
    """Registers a case."""

    def register(act: Act) -> Act:
        if name in CASES:
            raise ValueError(f"There are two cases {name!r}.")
        CASES[name] = act
        SLOW.update([name] if slow else [])
        return act

    return register


def cases(prefix: str, rows: Mapping[str, Any]) -> Callable[[Callable[..., str]], None]:
    """Registers a case PREFIX-NAME for every row; the function gets the directory and the row.

    Without a prefix the names are whole.
    """

    def register(act: Callable[..., str]) -> None:
        for name, row in rows.items():
            case(f"{prefix}-{name}".lstrip("-"))(lambda place, row=row: act(place, row))

    return register


def load_cases() -> dict[str, Act]:
    """All cases by name, from every module of this folder."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return CASES


def required() -> dict[str, str]:
    """Case -> the required outcome, the last cell of its row on the page."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| `")]
    return {row[0].strip("`"): row[-1] for row in rows}


def ended(result: Any) -> str:
    """`exit N`, or `traceback NAME` for an exception."""
    error = result.exception
    unexpected = error is not None and not isinstance(error, SystemExit)
    return f"traceback {type(error).__name__}" if unexpected else f"exit {result.exit_code}"


ROOT = tempfile.TemporaryDirectory()  # what `copied` makes, until the tests end


def copied(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """A maker that makes its files once and copies them into each directory."""

    @functools.cache
    def made() -> Path:
        make(Path(ROOT.name, make.__name__))
        return Path(ROOT.name, make.__name__)

    return lambda place: shutil.copytree(made(), place, dirs_exist_ok=True) and None


SECONDS = 20  # of processor time that a case may take


def timed(act: Callable[[], str]) -> str:
    """What `act` returns, or that it takes too much processor time."""
    late = []

    def stop(*_: object) -> None:
        late.append(True)
        raise TimeoutError

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        found = act()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    return f"more than {SECONDS} seconds" if late else found


def outcome(*arguments: object) -> str:
    """How a command line ends."""
    return ended(call(*arguments))
