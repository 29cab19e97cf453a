"""Cases on disk: one JSON line each, gzipped where the name ends in .gz, read strictly."""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import os
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraprobe.errors import LoraprobeError
from loraprobe.records import Interval
from loraprobe.verdict.evidence import Kind

METHODS = ("uniform", "sum", "arrow")


class CaseError(LoraprobeError):
    """A case file with a bad line, or too few cases for what is asked of them."""


@dataclass(frozen=True)
class Case:
    """One trial of one world under one method.

    base: the separately trained base; world, trial: where the adapters are from; adapters: how
    many. tasks, hops, metric: the kind of task. forecast: the gain that was forecast, error: its
    standard error, part: the form that it is about ("question" or "steps"). baseline: the
    best score of the base or a single adapter. gain: the measured gain on the better form,
    ci95: its pointwise interval, n: the items it rests on.
    """

    base: str
    architecture: str
    scenario: str
    world: str
    trial: str
    method: str
    adapters: int
    tasks: int
    hops: int
    metric: str
    forecast: float
    error: float
    part: str
    baseline: float
    gain: float
    ci95: Interval
    n: int

    def label(self, margin: float) -> int | None:
        """1 above the margin, 0 below it, None where the interval of the gain holds it."""
        if self.ci95[0] > margin:
            return 1
        return 0 if self.ci95[1] < margin else None

    @property
    def kind(self) -> Kind:
        """The kind of task."""
        return Kind(self.tasks, self.hops, self.metric)

    @property
    def adapter_set(self) -> tuple[str, str]:
        """What was trained separately: the adapters of this trial of this world."""
        return self.world, self.trial


def read_cases(path: str | Path) -> list[Case]:
    """All cases of a file. Raises CaseError naming the line and what is wrong with it."""
    path = Path(path)
    try:
        data = path.read_bytes()
        lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode().splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise CaseError(f"{path} cannot be read as cases ({type(error).__name__}).") from None
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(case_of(json.loads(line)))
            except (ValueError, TypeError) as error:
                raise CaseError(f"{path}, line {number}: {error}.") from None
    return found


def write_cases(path: str | Path, cases: Iterable[Case]) -> None:
    """Writes a case file, complete or not at all; the same cases give the same bytes."""
    path = Path(path)
    rows = (json.dumps(dataclasses.asdict(c), ensure_ascii=False, allow_nan=False) for c in cases)
    data = "".join(row + "\n" for row in rows).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    os.replace(part, path)


def case_of(row: Mapping[str, Any]) -> Case:
    """A case from plain data. Raises ValueError saying what is wrong."""
    if not isinstance(row, Mapping):
        raise ValueError("this is no object")
    hints = typing.get_type_hints(Case)
    for names, what in ((hints.keys() - row.keys(), "missing"), (row.keys() - hints.keys(), "new")):
        if names:
            raise ValueError(f"{', '.join(sorted(names))} is {what}")
    for name, hint in hints.items():
        if not _fits(row[name], hint):
            raise ValueError(f"{name} is {row[name]!r}")
    if row["method"] not in METHODS:
        raise ValueError(f"method is {row['method']!r}, not one of {', '.join(METHODS)}")
    return Case(**{**row, "ci95": tuple(row["ci95"])})


def _fits(value: Any, hint: Any) -> bool:
    if hint is str:
        return isinstance(value, str)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint is float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and math.isfinite(value)
    ends = list(value) if isinstance(value, list | tuple) else []
    return len(ends) == 2 and all(_fits(end, float) for end in ends) and ends[0] <= ends[1]
