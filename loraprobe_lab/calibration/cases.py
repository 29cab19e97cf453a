"""Case files, read strictly, and the cases of one adapter set together.

A file has one JSON line per case, gzipped if the name ends in .gz. A *first round* is drawn from
the cases of a set: the gain of each composition is its measured gain with a normal error, rounded
to whole items. The composition with the largest gain counts, as in a verdict. The size of the error
follows from the interval and the number of items of the measured gain (`item_deviation`).
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from loraprobe.errors import LoraprobeError
from loraprobe.records import Interval
from loraprobe.sample_size import Z95
from loraprobe.verdict.evidence import Kind
from loraprobe_lab.world import write_text

Method = Literal["uniform", "sum", "arrow"]
METHODS: tuple[Method, ...] = get_args(Method)
NATURAL = "natural"  # the architecture recorded for bases that the lab did not train
FORMER = ("forecast", "error", "forecast_retention", "retention")  # of older files; not read


class CaseError(LoraprobeError):
    """A case file with a bad line, or too few cases."""


@dataclass(frozen=True)
class Case:
    """One adapter set of one world under one method.

    base: the separately trained base. scenario: the class of adapter sets. adapters: their number.
    tasks, hops, metric: the kind of task. part: the form of the question ("question" or "steps").
    baseline: the best score of the base or a single adapter. gain: the measured gain on the better
    form, ci95: its pointwise interval, n: its items. model_type: that of the base's config, ""
    where it is unknown.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    base: str
    architecture: str
    scenario: str
    world: str
    adapter_set: str
    method: Method
    adapters: int
    tasks: int
    hops: int
    metric: str
    part: str
    baseline: float
    gain: float
    ci95: Interval
    n: int
    model_type: str = ""

    def __post_init__(self) -> None:
        if self.ci95[0] > self.ci95[1]:
            raise ValueError("the ends of ci95 are in the wrong order")

    def label(self, margin: float) -> int | None:
        """1 above the margin, 0 below it, None if the interval of the gain contains it."""
        if self.ci95[0] > margin:
            return 1
        return 0 if self.ci95[1] < margin else None

    @property
    def kind(self) -> Kind:
        """The kind of task."""
        return Kind(self.tasks, self.hops, self.metric)

    @property
    def base_kind(self) -> str:
        """The kind of base, as `loraprobe.verdict.calibration` tells them apart."""
        return "natural" if self.architecture == NATURAL else "small"

    @property
    def base_architecture(self) -> str:
        """The base's model_type, "" where it is unknown."""
        return self.model_type or ("" if self.architecture == NATURAL else self.architecture)

    @property
    def set_key(self) -> tuple[str, str]:
        """(world, adapter set), which identifies the separately trained adapters."""
        return self.world, self.adapter_set


CASE = TypeAdapter(Case)


def read_cases(path: str | Path) -> list[Case]:
    """All cases of a file. Raises CaseError with the line and the problem."""
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
                row = {k: v for k, v in json.loads(line).items() if k not in FORMER}
                found.append(CASE.validate_json(json.dumps(row)))
            except ValidationError as error:
                wrong = error.errors()[0]
                where = ".".join(map(str, wrong["loc"])) or "the case"
                raise CaseError(f"{path}, line {number}: {where}: {wrong['msg']}.") from None
            except (ValueError, AttributeError):
                raise CaseError(f"{path}, line {number} is no JSON object.") from None
    return found


def merged(old: Sequence[Any], new: Sequence[Any]) -> list[Any]:
    """Old cases or answered sets without those of sets that are in `new`, and then the new ones."""
    again = {one.set_key for one in new}
    return [*(one for one in old if one.set_key not in again), *new]


def write_cases(path: str | Path, cases: Iterable[Case]) -> None:
    """Writes a case file atomically; the same cases give the same bytes."""
    rows = (json.dumps(dataclasses.asdict(c), ensure_ascii=False, allow_nan=False) for c in cases)
    write_text(Path(path), "".join(row + "\n" for row in rows))


@dataclass(frozen=True)
class MeasuredSet:
    """The cases of one adapter set, one for each composition."""

    cases: tuple[Case, ...]

    @property
    def outcome(self) -> Case:
        """The set as one case: the largest gain, with an interval that decides as a set does."""
        best = max(self.cases, key=lambda case: case.gain)
        ends = [max(case.ci95[k] for case in self.cases) for k in (0, 1)]
        return dataclasses.replace(best, ci95=(ends[0], ends[1]))

    def first_round(self, items: int, rng: np.random.Generator) -> tuple[Case, float, float]:
        """A drawn first round: the best composition, its gain and its standard error."""
        found = []
        for case in self.cases:
            one = item_deviation(case)
            drawn = case.gain + rng.standard_normal() * one / math.sqrt(items)
            # Two items more, one gained and one lost, keep the error above 0 (Bonett and Price).
            error = math.sqrt(one**2 / (items + 2) + 2 / (items + 2) ** 2)
            found.append((case, round(drawn * items) / items, error))
        return max(found, key=lambda one: one[1])


def item_deviation(case: Case) -> float:
    """The standard deviation of one item's gain, from the interval and the number of items.

    Items of one cluster widen the interval, but a first round asks items of as many clusters as
    possible. The deviation is therefore at most the largest that right and wrong answers allow
    with this gain and baseline: the composition loses at most what the baseline knows, and gains at
    most what it does not know. Two items more, one gained and one lost, keep it above 0.
    """
    found = (case.ci95[1] - case.ci95[0]) / 2 / Z95 * math.sqrt(case.n)
    lost = max(min(case.baseline, 1 - case.baseline - case.gain), -case.gain, 0.0)
    differ = (case.n * (case.gain + 2 * lost) + 2) / (case.n + 2)
    return min(found, math.sqrt(max(differ - case.gain**2, 0.0)))


def sets_of(cases: Sequence[Case]) -> list[MeasuredSet]:
    """The cases by adapter set, in their order."""
    found: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        found.setdefault(case.set_key, []).append(case)
    return [MeasuredSet(tuple(own)) for own in found.values()]
