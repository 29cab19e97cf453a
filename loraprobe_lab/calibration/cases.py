"""Adapter sets with their answers, the cases that follow from them, and the files of both.

A *case* is one set under one method, with its measured gain. A file of cases has one JSON line per
case, gzipped if the name ends in .gz; a file of sets one gzipped JSON line per set: its
description, the kind of each system, and for each system a mark per item, right or wrong.

A *first round* is drawn from the cases of a set: the gain of each composition is its measured gain
with a normal error, rounded to whole items. The composition with the largest gain counts, as in a
verdict. The size of the error follows from the interval and the number of items of the measured
gain (`item_deviation`).
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from pydantic import ConfigDict, TypeAdapter

from loraprobe.errors import LoraprobeError
from loraprobe.evaluation import System, measure_gains, score
from loraprobe.extensions.forecast.probability import LEAST, Coefficients, gain_of, probability_kept
from loraprobe.records import BASELINES, FORMS, EvaluationRecords, Interval, ItemPart, ItemResult
from loraprobe.records.measurements import Z95
from loraprobe.verdict import candidates, decide_compositions
from loraprobe.verdict.evidence import WEAKEST_FIRST, Evidence, TaskKind
from loraprobe_lab.world import read_lines, write_text

Method = Literal["uniform", "sum", "arrow"]
METHODS: tuple[Method, ...] = get_args(Method)
NATURAL = "natural"  # the architecture recorded for bases that the lab did not train
FORMER = ("forecast", "error", "forecast_retention", "retention")  # of older files; not read


class CaseError(LoraprobeError):
    """A case file with a bad line, or too few cases."""


@dataclass(frozen=True)
class Trained:
    """Separately trained adapters. scenario: the class of adapter sets."""

    base: str
    architecture: str
    scenario: str
    world: str
    adapter_set: str

    @property
    def base_kind(self) -> str:
        """The kind of base, as `loraprobe.extensions.forecast` tells them apart."""
        return "natural" if self.architecture == NATURAL else "small"

    @property
    def set_key(self) -> tuple[str, str]:
        """(world, adapter set), which identifies the adapters."""
        return self.world, self.adapter_set


@dataclass(frozen=True)
class Case(Trained):
    """One adapter set of one world under one method.

    adapters: their number. tasks, hops, metric: the kind of task. part: the form of the question
    ("question" or "steps").
    baseline: the best score of the base or a single adapter. gain: the measured gain on the better
    form, ci95: its pointwise interval, n: its items. model_type: that of the base's config, ""
    where it is unknown.
    """

    __pydantic_config__ = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

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
    def kind(self) -> TaskKind:
        """The kind of task."""
        return TaskKind(self.tasks, self.hops, self.metric)

    @property
    def base_architecture(self) -> str:
        """The base's model_type, "" where it is unknown."""
        return self.model_type or ("" if self.architecture == NATURAL else self.architecture)


CASE = TypeAdapter(Case)


def read_cases(path: str | Path) -> list[Case]:
    """All cases of a file. Raises CaseError with the line and the problem."""
    found = list[Case]()
    try:
        for line in read_lines(Path(path)):
            row = {k: v for k, v in json.loads(line).items() if k not in FORMER}
            found.append(CASE.validate_json(json.dumps(row)))
    except (OSError, EOFError, ValueError, AttributeError) as error:
        told = " ".join(str(error).split())
        raise CaseError(f"{path}, line {len(found) + 1}, is no case: {told}.") from None
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


ABSENT = "-"


@dataclass(frozen=True)
class AnsweredSet(Trained):
    """An adapter set, and which system answered which item right.

    kinds: system -> kind. What follows the results is missing
    in older files. base_digest: that of the files of a base that the lab trained. fingerprint: a
    digest of all on which the answers depend.
    """

    kinds: Mapping[str, str]
    results: tuple[ItemResult, ...] = field(repr=False)
    hops: int = 0
    model_type: str = ""
    base_digest: str = ""
    fingerprint: str = ""

    @property
    def tasks(self) -> int:
        return len({row.task for row in self.results})

    @property
    def kind(self) -> TaskKind:
        return TaskKind(self.tasks, self.hops, self.evidence(self.results).kind_of_task.metric)

    @property
    def best_gain(self) -> float:
        """The measured gain of the best composition."""
        composed = [name for name, kind in self.kinds.items() if kind not in BASELINES]
        return max(measured_gain(self.results, self.kinds, name)["gain"] for name in composed)

    @property
    def systems(self) -> list[System]:
        return [System(name, kind) for name, kind in self.kinds.items()]

    def under(self, compositions: Sequence[str]) -> AnsweredSet:
        """The set as it is where only these compositions are asked."""
        kept = {n: k for n, k in self.kinds.items() if k in BASELINES or n in compositions}
        results = tuple(row for row in self.results if row.system in kept)
        return replace(self, kinds=kept, results=results)

    @property
    def outcome(self) -> int | None:
        """1 for a success, 0 for a failure, None where it is undecided on all items.

        A set succeeds if some composition is shown to gain and to keep every specialist's skill,
        and fails if every composition is shown not to. Controls have no part in it.
        """
        found = self.evidence(self.results)
        said = [
            min((c.gain.outcome, c.retains, c.enough), key=WEAKEST_FIRST.index)
            for part in FORMS
            for c in candidates(found, part)
        ]
        best = max(said, key=WEAKEST_FIRST.index, default="inconclusive")
        return {"likely": 1, "unlikely": 0}.get(best)

    def first_round(
        self, items: int, rng: np.random.Generator, coefficients: Coefficients
    ) -> float:
        """The probability after a drawn first round; NaN where a verdict would have none."""
        chosen = set[tuple[str, str]]()
        for task in sorted({row.task for row in self.results}):
            asked = sorted({row.item for row in self.results if row.task == task})
            drawn = rng.choice(len(asked), size=min(items, len(asked)), replace=False)
            chosen |= {(task, asked[k]) for k in drawn}
        found = self.evidence([row for row in self.results if (row.task, row.item) in chosen])
        gain = gain_of(decide_compositions(found), found)
        if gain is None:
            return float("nan")
        if any(row.retention is None for row in found.scores(gain.system, gain.part)):
            return float("nan")
        baseline = found.baseline or 0.0
        gained = coefficients.exceeds(found.margin, baseline, gain.difference, gain.estimate.error)
        return min(max(gained, LEAST), 1 - LEAST) * probability_kept(gain, found)

    def evidence(self, results: Sequence[ItemResult]) -> Evidence:
        """What a verdict reads of some of the results."""
        measured = EvaluationRecords(
            scores=score(results, self.systems), gains=measure_gains(results, self.systems)
        )
        return Evidence(measured, tasks=self.tasks, level="evaluation")

    def cases(self) -> list[Case]:
        """The set under each method. Raises CaseError for a method that answered nothing.

        Sets on a base that the lab did not train lie in worlds of their own.
        """
        found = self.evidence(self.results)
        alone = found.systems(("adapter",))
        world = self.world if self.base_kind == "small" else f"{self.world}-{self.adapter_set}"
        return [
            Case(
                base=self.base,
                architecture=self.architecture,
                scenario=self.scenario,
                world=world,
                adapter_set=self.adapter_set,
                method=method,
                adapters=len(alone),
                **asdict(self.kind),
                baseline=found.baseline or 0.0,
                **measured_gain(self.results, self.kinds, method),
                model_type=self.model_type,
            )
            for method in METHODS
        ]


def measured_gain(
    results: Sequence[ItemResult], kinds: Mapping[str, str], composition: str
) -> dict[str, Any]:
    """The gain of one composition over the best of base and singles, as evaluation computes it.

    It is the smallest difference to base and singles in the form `part`, with its pointwise
    interval `ci95` and its number of items `n`: fields of a `Case`.

    kinds: system -> kind. The question is asked in both forms and the better one counts, so the
    interval reaches from the larger lower end to the larger upper end of the two forms' intervals.
    Of several tasks the macro mean counts. Raises CaseError without common items.
    """
    names = {name for name, kind in kinds.items() if kind in BASELINES} | {composition}
    own = [row for row in results if row.system in names]
    systems = [System(name, kinds[name]) for name in sorted(names)]
    rows = [gain for gain in measure_gains(own, systems) if gain.system == composition]
    if not rows:
        raise CaseError(f"{composition} shares no items with base and single adapters.")
    best = max(rows, key=lambda gain: gain.difference)
    items = {(r.task, r.item) for r in own if (r.system, r.part) == (composition, best.part)}
    ends = (max(gain.ci95[0] for gain in rows), max(gain.ci95[1] for gain in rows))
    found = {"gain": best.difference, "ci95": ends}
    return {**found, "n": len(items), "part": best.part}


def packed(results: Sequence[ItemResult]) -> dict[str, Any]:
    """Results as plain data: the items, and for each system a mark per item.

    Raises ValueError for losses, which are neither right nor wrong.
    """
    marks: dict[str, dict[tuple[str, ...], str]] = {}
    for row in results:
        if row.metric == "answer_loss":
            raise ValueError("losses are neither right nor wrong")
        key = (row.task, row.part, row.item, row.group)
        marks.setdefault(row.system, {})[key] = "1" if row.value == 1.0 else "0"
    items = list(dict.fromkeys(key for found in marks.values() for key in found))
    right = {s: "".join(found.get(key, ABSENT) for key in items) for s, found in marks.items()}
    return {"items": items, "right": right}


def unpacked(document: Mapping[str, Any]) -> list[ItemResult]:
    """The results that were packed, system by system."""
    return [
        ItemResult(system, task, ItemPart(part), item, "exact_match", float(mark), "", group)
        for system, marks in document["right"].items()
        for (task, part, item, group), mark in zip(document["items"], marks, strict=True)
        if mark != ABSENT
    ]


def read_sets(path: Path) -> list[AnsweredSet]:
    """The sets of a file. Raises CaseError for one that cannot be read."""
    try:
        rows = map(json.loads, read_lines(path))
        return [AnsweredSet(**{**row, "results": tuple(unpacked(row["results"]))}) for row in rows]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise CaseError(f"{path} is no file of answered sets ({type(error).__name__}).") from None


def write_sets(path: Path, sets: Sequence[AnsweredSet]) -> None:
    """Writes the sets in their order; equal sets give equal bytes."""
    lines = [
        json.dumps({**vars(one), "results": packed(one.results)}, ensure_ascii=False)
        for one in sets
    ]
    write_text(path, "".join(f"{line}\n" for line in lines))
