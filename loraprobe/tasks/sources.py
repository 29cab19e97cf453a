"""Reads the rows of data files: JSONL, JSON, CSV, TSV and Parquet.

A row is a mapping from names of fields to values, with its place ("line 3"). CSV is read by the
standard library, Parquet by pyarrow, which the extra `datasets` installs.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraprobe import untrusted
from loraprobe.errors import TaskError
from loraprobe.untrusted import error_line, unique_keys

TABLES = (".csv", ".tsv", ".parquet")  # whose cells have no types of ours
PARQUET_EXTRA = "pip install 'loraprobe[datasets]'"
_BATCH = 64  # rows of a Parquet file that are unpacked at once


@dataclass(frozen=True)
class DataRow:
    """One row with its place in its file; `number` counts lines, or rows of JSON and Parquet."""

    file: Path
    unit: str
    number: int
    content: Mapping[str, Any]

    def error(self, problem: object) -> TaskError:
        """The error that names this row."""
        return TaskError(f"{self.file}, {self.unit} {self.number}: {problem}")


def read_rows(path: Path, data: bytes) -> Iterator[DataRow]:
    """The rows of a file whose bytes are `data`; its ending names a table, its text JSON or JSONL.

    Raises TaskError with the place of the first row that cannot be read.
    """
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _parquet(path, data)
    if kind in TABLES:
        return _table(path, data, "\t" if kind == ".tsv" else ",")
    listed = kind == ".json" and data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
    return _json(path, data, "item" if listed else "line")


def read_file(path: Path, noun: str) -> bytes:
    """The bytes of a file. Raises TaskError if it cannot be read or is too large."""
    try:
        size = path.stat().st_size
        if size > untrusted.ITEMS:
            raise TaskError(
                f"The {noun} file {path} has {size:,} bytes, at most "
                f"{untrusted.ITEMS:,} are read; split it."
            )
        return path.read_bytes()
    except FileNotFoundError:
        raise TaskError(f"There is no {noun} file {path}: check the path.") from None
    except IsADirectoryError:
        raise TaskError(f"{path} is a directory: name the {noun} file in it.") from None
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


def _json(path: Path, data: bytes, unit: str) -> Iterator[DataRow]:
    """Rows of JSONL (unit "line") or of a list in JSON ("item")."""
    values: Iterable[tuple[int, Any]]
    if unit == "line":
        values = ((n, _loaded(path, line, n)) for n, line in read_lines(data, path))
    else:
        values = enumerate(_loaded(path, _text(path, data)), 1)
    for number, value in values:
        row = DataRow(path, unit, number, value)
        if not isinstance(value, dict):
            raise row.error("there is no JSON object with prompt and answer.")
        yield row


def _text(path: Path, data: bytes) -> str:
    """The text of a file whose lines are all UTF-8 and not too long."""
    for _ in read_lines(data, path):
        pass
    return data.decode("utf-8-sig")


def _loaded(path: Path, text: str, line: int | None = None) -> Any:
    """The JSON value of a line, or of a whole file. Raises TaskError with its place."""
    try:
        return json.loads(text, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        place, problem = line or error.lineno, f"{error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:
        place, problem = line or 1, error_line(error)
    raise TaskError(f"{path}, line {place}: not JSON ({problem}).")


def _table(path: Path, data: bytes, delimiter: str) -> Iterator[DataRow]:
    """Rows of a table with a header; a header with more ; than , is split at these."""
    text = _text(path, data)
    header = text.lstrip().partition("\n")[0]
    if delimiter == "," and header.count(";") > header.count(","):
        delimiter = ";"
    csv.field_size_limit(untrusted.LINE)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        while reader.fieldnames == []:  # a blank line before the header
            reader.fieldnames = None
        names = [name.strip() for name in reader.fieldnames or ()]
        if len(set(names)) < len(names):
            raise TaskError(f"{path}, line 1: two columns have one name; rename one.")
        reader.fieldnames = names
        for cells in reader:
            row = DataRow(path, "line", reader.line_num, cells)
            if None in cells or None in cells.values():
                raise row.error(
                    f"not as many cells as the header has, {len(names)}; put a cell that holds "
                    f"{delimiter!r} into double quotes."
                )
            if any(cells.values()):
                yield row
    except csv.Error as error:
        raise TaskError(
            f"{path}, line {reader.line_num + 1}: not CSV ({error}); put cells with quotes into "
            "double quotes."
        ) from None


def _parquet(path: Path, data: bytes) -> Iterator[DataRow]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise TaskError(f"{path} is Parquet, which pyarrow reads: {PARQUET_EXTRA}.") from None
    try:
        file = pyarrow.parquet.ParquetFile(io.BytesIO(data))
        if file.metadata.num_rows > untrusted.ROWS:
            raise TaskError(
                f"{path} has {file.metadata.num_rows:,} rows, and {untrusted.ROWS:,} are the most; "
                "split it."
            )
        number = size = 0
        for batch in file.iter_batches(batch_size=_BATCH):
            size += batch.nbytes
            if size > untrusted.ITEMS:
                raise TaskError(f"{path} unpacks to more than {untrusted.ITEMS:,} bytes; split it.")
            for content in batch.to_pylist():
                number += 1
                yield DataRow(path, "row", number, content)
    except pyarrow.ArrowException as error:
        problem = str(error).splitlines()[0].rstrip(".")
        raise TaskError(f"{path} is no Parquet file ({problem}); get it again.") from None
