"""Reads files: their bytes, their lines, and the rows of JSONL.

A row is a mapping from names of fields to values, with its place ("line 3").
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraprobe import untrusted
from loraprobe.errors import TaskError
from loraprobe.untrusted import error_line, unique_keys


@dataclass(frozen=True)
class DataRow:
    """One row with its place in its file; `number` counts what `unit` says, as "line"."""

    file: Path
    unit: str
    number: int
    content: Mapping[str, Any]

    def error(self, problem: str, cure: str = "") -> TaskError:
        """The error that names this row."""
        return TaskError(problem, cure).at(self.place)

    @property
    def place(self) -> str:
        """The row as errors name it."""
        return f"{self.file}, {self.unit} {self.number}"


def read_file(path: Path, noun: str) -> bytes:
    """The bytes of a file. Raises TaskError if it cannot be read or is too large."""
    if untrusted.is_endless(path):
        raise TaskError(f"{path} is a pipe or a device; write the {noun} into a file.")
    try:
        size = path.stat().st_size
        if size > untrusted.ITEMS:
            raise TaskError(
                f"The {noun} file {path} has {size:,} bytes, at most "
                f"{untrusted.ITEMS:,} are read; split it."
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise TaskError(f"There is no {noun} file {path}:", "check the path.") from None
    except IsADirectoryError:
        raise TaskError(f"{path} is a directory:", f"name the {noun} file in it.") from None
    except OSError as error:
        raise TaskError(f"The {noun} file {path} cannot be read: {error.strerror}.") from None


def read_lines(data: bytes, path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines that are not blank, split only at line feeds, as JSONL requires."""
    for number, raw in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if len(raw) > untrusted.LINE:
            raise TaskError(
                f"{path}, line {number}: {len(raw):,} bytes in one line, at most "
                f"{untrusted.LINE:,} are read; write one item a line."
            )
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TaskError(
                f"{path}, line {number}: not UTF-8 (byte {error.start + 1}); save it as UTF-8."
            ) from None
        if "\x00" in line:
            raise TaskError(f"{path}, line {number}: holds a zero byte; is this a text file?")
        if line.strip():
            yield number, line.rstrip("\r")


def read_rows(path: Path, data: bytes) -> Iterator[DataRow]:
    """The rows of a file of JSONL whose bytes are `data`.

    Raises TaskError with the place of the first row that cannot be read.
    """
    for number, line in read_lines(data, path):
        yield object_row(path, "line", number, parse_json(path, line, number))


def object_row(path: Path, unit: str, number: int, value: Any) -> DataRow:
    """A value as a row. Raises TaskError for one that is no object."""
    row = DataRow(path, unit, number, value)
    if not isinstance(value, dict):
        raise row.error("there is no JSON object with prompt and answer.")
    return row


def parse_json(path: Path, text: str, line: int | None = None) -> Any:
    """The JSON value of a line, or of a whole file. Raises TaskError with its place."""
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        place, problem = line or error.lineno, f"{error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:
        place, problem = line or 1, error_line(error)
    raise TaskError(f"{path}, line {place}: not JSON ({problem}).")
