"""Cases on disk: one JSON line each, read strictly; counts of classes by cell.

A cell is a scenario under a family of method. A cell in which one class holds less than a fifth of
the decided cases is *single-class*: always answering the other class is nearly right there, so it
tells nothing about a predictor and stays out of the headline.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraprobe.errors import LoraprobeError
from loraprobe_lab.world import write_text

FAMILIES = ("average", "sum", "router")
NATURAL = "natural"  # worlds on a base that the lab did not train
FEWEST_SHARE = 0.2  # of the decided cases of a cell, for each class


class CaseError(LoraprobeError):
    """A case file with a bad line, or too few cases for what is asked of them."""


@dataclass(frozen=True)
class Truth:
    """What a composition gained: accuracies in [0, 1] on the better form of the question.

    `gain` is the smallest difference to base and singles, `ci95` its pointwise interval, `part`
    the form ("target" or "cot"), `best_single` and `base` the best scores of those, any form.
    """

    gain: float
    ci95: tuple[float, float]
    n: int
    part: str
    score: float
    best_single: float
    base: float

    def label(self, margin: float) -> int | None:
        """1 above the margin, 0 below it, None where the interval holds it."""
        if self.ci95[0] > margin:
            return 1
        return 0 if self.ci95[1] < margin else None


@dataclass(frozen=True)
class Case:
    """One trial of one world under one method.

    `base` names the separately trained base, `world` the directory, `adapters` the set.
    """

    base: str
    world: str
    architecture: str
    kind: str
    scenario: str
    trial: str
    adapters: tuple[str, ...]
    method: str
    family: str
    hops: int
    tasks: int
    features: Mapping[str, float | None]
    truth: Truth
    label: int | None
    axes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def cell(self) -> tuple[str, str]:
        """Scenario and family of method."""
        return self.scenario, self.family

    @property
    def adapter_set(self) -> tuple[str, tuple[str, ...]]:
        """What was trained separately: these adapters of this world."""
        return self.world, tuple(sorted(self.adapters))


@dataclass(frozen=True)
class Cell:
    """How many cases of a scenario and a family ended how."""

    scenario: str
    family: str
    successes: int
    failures: int
    undecided: int

    @property
    def decided(self) -> int:
        return self.successes + self.failures

    @property
    def single_class(self) -> bool:
        """Whether a class holds less than a fifth of the decided cases."""
        smaller = min(self.successes, self.failures)
        return smaller < FEWEST_SHARE * self.decided or smaller == 0


def read_cases(path: str | Path) -> list[Case]:
    """All cases of a file. Raises CaseError naming the line and what is wrong with it."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise CaseError(f"{path} cannot be read: {error.strerror}.") from None
    found = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                found.append(case_of(json.loads(line)))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise CaseError(f"{path}, line {number}: {_wrong(error)}.") from None
    return found


def write_cases(path: str | Path, cases: Iterable[Case]) -> None:
    """Writes a case file, complete or not at all."""
    rows = (json.dumps(dataclasses.asdict(c), ensure_ascii=False, allow_nan=False) for c in cases)
    write_text(Path(path), "".join(row + "\n" for row in rows))


def case_of(row: Mapping[str, Any]) -> Case:
    """A case from plain data. Raises ValueError, TypeError or KeyError saying what is wrong."""
    truth = Truth(**{**row["truth"], "ci95": _interval(row["truth"]["ci95"])})
    names = {field.name for field in dataclasses.fields(Case)}
    if unknown := set(row) - names:
        raise ValueError(f"no case has {', '.join(sorted(unknown))}")
    made = {**row, "truth": truth, "adapters": tuple(row["adapters"])}
    missing = names - set(made) - {"axes"}
    if missing:
        raise ValueError(f"{', '.join(sorted(missing))} is missing")
    case = Case(**made)
    _check(case)
    return case


def _check(case: Case) -> None:
    if case.family not in FAMILIES:
        raise ValueError(f"family is {case.family!r}, not one of {', '.join(FAMILIES)}")
    if case.label not in (0, 1, None):
        raise ValueError(f"label is {case.label!r}, not 0, 1 or null")
    for name, value in case.features.items():
        if value is not None and not _finite(value):
            raise ValueError(f"feature {name} is {value!r}, not a finite number or null")
    for name in ("gain", "score", "best_single", "base"):
        if not _finite(getattr(case.truth, name)):
            raise ValueError(f"truth.{name} is not a finite number")


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _interval(value: Any) -> tuple[float, float]:
    low, high = value
    if not (_finite(low) and _finite(high) and low <= high):
        raise ValueError(f"truth.ci95 is {value!r}, not [low, high]")
    return float(low), float(high)


def _wrong(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"this is no JSON ({error.msg})"
    if isinstance(error, KeyError):
        return f"{error.args[0]} is missing"
    return str(error)


def decided(cases: Iterable[Case]) -> list[Case]:
    """Those whose interval does not hold the margin."""
    return [case for case in cases if case.label is not None]


def cells(cases: Sequence[Case]) -> tuple[Cell, ...]:
    """Counts by scenario and family, sorted; undecided cases are counted and belong to no class."""
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault(case.cell, []).append(case)
    return tuple(
        Cell(
            *key,
            successes=sum(c.label == 1 for c in group),
            failures=sum(c.label == 0 for c in group),
            undecided=sum(c.label is None for c in group),
        )
        for key, group in sorted(groups.items())
    )


def two_class(cases: Sequence[Case]) -> set[tuple[str, str]]:
    """The cells in which both classes hold at least a fifth of the decided cases."""
    return {(cell.scenario, cell.family) for cell in cells(cases) if not cell.single_class}
