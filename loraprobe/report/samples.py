"""The answers of all systems as JSONL, a question a line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path

from loraprobe.adapters import check_file, staged_file
from loraprobe.records import Sample, plain
from loraprobe.secrets import scrub

KEYS = {field.name for field in dataclasses.fields(Sample)}
LONGEST = 1 << 24  # characters of the first line of an existing file


def check_samples(file: Path) -> None:
    """Raises OutputError for an existing file, unless it holds samples of loraprobe."""
    check_file(
        file,
        lambda stream: _is_sample(stream.readline(LONGEST)),
        "holds no samples of loraprobe's",
    )


def _is_sample(line: str) -> bool:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return not line  # an empty file
    return isinstance(row, dict) and row.keys() == KEYS


def write_samples(samples: Iterable[Sample], file: Path) -> None:
    """Writes the file, whole or not at all, one sample at a time. Raises OutputError."""
    check_samples(file)
    with staged_file(file) as staging, staging.open("w", encoding="utf-8") as stream:
        for sample in samples:
            line = json.dumps(plain(sample), ensure_ascii=False, allow_nan=False)
            stream.write(scrub(line).encode("utf-8", "replace").decode("utf-8") + "\n")
