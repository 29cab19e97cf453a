"""Inputs that once gave a wrong answer without a warning, a hang, a loss of files or a traceback.

docs/adversarial.md is the table of the cases: the input, the outcome of the first version, and the
required outcome. Each module of this folder holds the cases of one area, `hostile.py` beside the
tests of an extension those of the extension, which are on the page that it names as PAGE. A case is
a function that takes an empty directory, calls loraprobe there as a user would, and returns the
outcome in a few words: an exit code and, if that says too little, a code or a value.
tests/core/pipeline/test_adversarial.py runs every case and compares it with its page.
"""

import functools
import importlib
import pkgutil
import shutil
import signal
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from making import call

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "adversarial.md"]
Act = Callable[[Path], str]
CASES: dict[str, Act] = {}
HOSTILE = "What a stranger may try"  # a heading on the page of an extension
MARKS: dict[str, Sequence[pytest.MarkDecorator]] = {}


def case(name: str, *marks: pytest.MarkDecorator) -> Callable[[Act], Act]:
    """Registers a case, whose test has these marks."""

    def register(act: Act) -> Act:
        if name in CASES:
            raise ValueError(f"There are two cases {name!r}.")
        CASES[name], MARKS[name] = act, marks
        return act

    return register


def cases(
    prefix: str, rows: Mapping[str, Any], *marks: pytest.MarkDecorator
) -> Callable[[Callable[..., str]], None]:
    """Registers a case PREFIX-NAME for every row; the function gets the directory and the row.

    Without a prefix the names are whole.
    """

    def register(act: Callable[..., str]) -> None:
        for name, row in rows.items():
            case(f"{prefix}-{name}".lstrip("-"), *marks)(lambda place, row=row: act(place, row))

    return register


def load_cases() -> dict[str, Act]:
    """All cases by name, those of extensions too, whose pages join PAGES."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    for file in sorted(Path(__file__).parents[1].glob("extensions/*/hostile.py")):
        module = importlib.import_module(f"extensions.{file.parent.name}.hostile")
        PAGES.append(DOCS / module.PAGE)
    return CASES


def required() -> dict[str, str]:
    """Case -> the required outcome, the last cell of its row on a page of PAGES.

    On the page of an extension a row counts below the heading HOSTILE.
    """
    rows = [
        line.strip("| ").split(" | ")
        for page in PAGES
        for line in hostile_part(page).splitlines()
        if line.startswith("| `")
    ]
    return {row[0].strip("`"): row[-1] for row in rows}


def hostile_part(page: Path) -> str:
    """What a page says of files of strangers: all of it, or the part below the heading HOSTILE."""
    text = page.read_text(encoding="utf-8")
    _, found, below = text.partition(f"\n## {HOSTILE}\n")
    return below.partition("\n## ")[0] if found else text


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
