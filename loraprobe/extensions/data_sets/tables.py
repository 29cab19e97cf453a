"""Reads the rows of data files: JSONL, JSON, CSV, TSV and Parquet.

CSV is read by the standard library, Parquet by pyarrow, which the extra `datasets` installs.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loraprobe import untrusted
from loraprobe.errors import TaskError
from loraprobe.tasks.reading import (
    TABLES,
    DataRow,
    parse_json,
    read_lines,
    read_rows,
)
from loraprobe.untrusted import error_line

PARQUET_EXTRA = "pip install 'loraprobe[datasets]'"
_MEMORY = 1_000_000_000  # bytes that are taken to unpack a part of a Parquet file
_BATCH = 1024  # rows of a Parquet file that are unpacked at once


def data_rows(path: Path, data: bytes) -> Iterator[DataRow]:
    """The rows of a file whose bytes are `data`; its ending names a table, its text JSON or JSONL.

    Raises TaskError with the place of the first row that cannot be read.
    """
    kind = path.suffix.lower()
    if kind == ".parquet":
        return _parquet(path, data)
    if kind in TABLES:
        return _table(path, data, "\t" if kind == ".tsv" else ",")
    if kind == ".json" and data.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
        values = enumerate(parse_json(path, _text(path, data)), 1)
        return (DataRow(path, "item", number, value) for number, value in values)
    return read_rows(path, data)


def _text(path: Path, data: bytes) -> str:
    """The text of a file whose lines are all UTF-8 and not too long."""
    for _ in read_lines(data, path):
        pass
    return data.decode("utf-8-sig")


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
    """Rows of a Parquet file, a few at a time.

    Texts are read as the file has them, each once with the numbers of the rows that hold it, and
    their lengths are known before they become texts of rows.
    """
    try:
        import pyarrow
    except ImportError:
        raise TaskError(f"{path} is Parquet, which pyarrow reads:", f"{PARQUET_EXTRA}.") from None
    number = size = 0
    batches = _batches(path, data)
    while True:
        try:
            with untrusted.memory_limit(_MEMORY):
                batch = next(batches, None)
                size += 0 if batch is None else sum(map(_unpacked, batch.columns))
                if size > untrusted.UNPACKED:
                    raise TaskError(
                        f"{path} unpacks to more than {untrusted.UNPACKED:,} bytes; split it."
                    )
                contents = [] if batch is None else batch.to_pylist()
        except MemoryError:
            raise TaskError(f"{path} unpacks to more than fits into memory; split it.") from None
        except (OSError, ValueError, TypeError, KeyError, pyarrow.ArrowException) as error:
            # pyarrow raises any of these for a damaged file.
            raise TaskError(
                f"{path} is no Parquet file ({error_line(error)}); get it again."
            ) from None
        for content in contents:
            number += 1
            yield DataRow(path, "row", number, content)
        if batch is None:
            return


def _batches(path: Path, data: bytes) -> Iterator[Any]:
    """Batches of the rows of a Parquet file, whose texts are arrays with a dictionary."""
    from pyarrow import parquet

    file = parquet.ParquetFile(io.BytesIO(data))
    if file.metadata.num_rows > untrusted.ROWS:
        raise TaskError(
            f"{path} has {file.metadata.num_rows:,} rows, and {untrusted.ROWS:,} are the most; "
            "split it."
        )
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    deltas = {c.path_in_schema for c in chunks if any(e.startswith("DELTA") for e in c.encodings)}
    texts = {c.path_in_schema for c in chunks if c.physical_type == "BYTE_ARRAY"} - deltas
    file = parquet.ParquetFile(io.BytesIO(data), read_dictionary=sorted(texts))
    for number in range(len(groups)):  # iter_batches leaves threads that may end the process
        yield from file.read_row_group(number, use_threads=False).to_batches(_BATCH)


def _unpacked(array: Any) -> int:
    """The bytes of an array of Arrow once a text that many rows share stands in each."""
    from pyarrow import compute, types

    if types.is_dictionary(array.type):
        lengths = compute.binary_length(array.dictionary)
        return compute.sum(lengths.take(array.indices)).as_py() or 0
    if types.is_nested(array.type):
        parts = array.flatten()
        return sum(map(_unpacked, parts if isinstance(parts, list) else [parts]))
    return int(array.nbytes)
