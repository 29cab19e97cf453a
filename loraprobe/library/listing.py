"""The references of a library: as given, from files of references, and from standard input."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TextIO

from loraprobe.adapters import Adapter
from loraprobe.errors import UsageError

FILE, STANDARD_INPUT = "@", "-"
ONE_A_LINE = "write one reference a line"


def listed(
    references: Sequence[Adapter | str | Path], stdin: TextIO | None = None
) -> list[Adapter | str | Path]:
    """The references with those of every `@FILE`, and of `-` (standard input), in their place.

    A file holds one reference a line, which may be NAME=REF; blank lines and what follows a # at
    the start of a line or after a space are left out. Raises UsageError for a file that cannot be
    read or holds no reference.
    """
    found: list[Adapter | str | Path] = []
    for one in references:
        if isinstance(one, str) and one == STANDARD_INPUT:
            found += _of_stream(stdin)
        elif isinstance(one, str) and one.startswith(FILE):
            found += _of_file(one.removeprefix(FILE))
        else:
            found.append(one)
    if not found:
        raise UsageError("No adapter was given; give at least one.")
    return found


def _of_file(name: str) -> list[str]:
    file = Path(name).expanduser()
    try:
        found = _references(file.read_text(encoding="utf-8-sig").splitlines())
    except OSError as error:
        raise UsageError(f"@{name} cannot be read ({error.strerror}); check the path.") from None
    except UnicodeDecodeError:
        raise UsageError(f"@{name} is no text in UTF-8; {ONE_A_LINE}.") from None
    if not found:
        raise UsageError(f"@{name} holds no reference; {ONE_A_LINE}.")
    return found


def _of_stream(stdin: TextIO | None) -> list[str]:
    if stdin is None or stdin.isatty():
        raise UsageError(
            "- stands for references on standard input; give some there, as loraprobe find BASE "
            "does in a pipe."
        )
    try:
        found = _references(stdin.read().splitlines())
    except UnicodeDecodeError:
        raise UsageError(f"Standard input is no text in UTF-8; {ONE_A_LINE}.") from None
    if not found:
        raise UsageError(f"Standard input holds no reference; {ONE_A_LINE}.")
    return found


def _references(lines: Iterable[str]) -> list[str]:
    texts = (line if not line.startswith("#") else "" for line in map(str.strip, lines))
    return [kept for text in texts if (kept := text.partition(" #")[0].strip())]
