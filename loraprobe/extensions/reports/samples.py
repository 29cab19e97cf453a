"""The file of --save-samples: a line for each question with what every system answered."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from loraprobe.adapters import check_file, staged_file
from loraprobe.records import Audit, Sample, plain
from loraprobe.secrets import scrub

KEYS = {field.name for field in dataclasses.fields(Sample)}
LONGEST = 1 << 24  # characters of the first line of an existing file


def check(file: Path) -> None:
    """Raises OutputError for an existing file, unless it holds samples of loraprobe."""
    check_file(file, _holds_samples, "holds no samples of loraprobe's")


def _holds_samples(stream: TextIO) -> bool:
    line = stream.readline(LONGEST)
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return not line  # an empty file
    return isinstance(row, dict) and row.keys() == KEYS


def write(audit: Audit, samples: Iterable[Sample], file: Path) -> None:
    """Writes the file, whole or not at all, one sample at a time. Raises OutputError."""
    check(file)
    with staged_file(file) as staging, staging.open("w", encoding="utf-8") as stream:
        for sample in samples:
            line = json.dumps(plain(sample), ensure_ascii=False, allow_nan=False)
            stream.write(scrub(line).encode("utf-8", "replace").decode("utf-8") + "\n")
