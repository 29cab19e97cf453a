"""The interface of coverage probes: requests to the base model, and rows made from its answers.

A probe first lists the continuations that it wants scored. `cover` collects the requests of all
probes and tasks and scores each distinct request once, in one pass over the base. A probe that
only reads the accuracies of the base and the single adapters requests nothing.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from loraprobe.evaluation import statistics
from loraprobe.evaluation.questions import Question, questions
from loraprobe.probes._names import MadeUpNames
from loraprobe.records import Coverage, Interval, ItemResult
from loraprobe.tasks import Task, normalize_answer

BASE = "base"
MOST_ITEMS = 100  # a probe's figure needs no more items; a larger part is sampled


@dataclass(frozen=True)
class Request:
    """Asks how likely the base model finds this continuation of this prompt.

    raw: ask without the chat template, for texts that are not questions.
    """

    prompt: str
    continuation: str
    raw: bool = False


@dataclass(frozen=True)
class Part:
    """The composed question (hop None) or one hop of a task."""

    hop: int | None
    questions: tuple[Question, ...]

    @property
    def name(self) -> str:
        """The name of this part in results."""
        return "question" if self.hop is None else f"hop{self.hop}"

    @cached_property
    def gold(self) -> tuple[str, ...]:
        """The distinct first answers of all questions, in their order."""
        return tuple(
            {normalize_answer(q.answers[0]): q.answers[0] for q in self.questions}.values()
        )

    def guess(self) -> float | None:
        """The accuracy of the best constant answer; of a random choice if all have choices."""
        if not self.questions:
            return None
        if all(choices_of(q) for q in self.questions):
            return sum(1 / len(choices_of(q)) for q in self.questions) / len(self.questions)
        counts: dict[str, int] = {}
        for question in self.questions:
            for answer in {normalize_answer(answer) for answer in question.answers}:
                counts[answer] = counts.get(answer, 0) + 1
        return max(counts.values()) / len(self.questions)


@dataclass(frozen=True, eq=False)
class ProbeContext:
    """One task, the results of base and adapters on it, and the seed of all random draws."""

    task: Task
    adapters: tuple[str, ...]
    results: tuple[ItemResult, ...]
    names: MadeUpNames
    seed: int = 0

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The composed question, then the hops; later hops contain gold answers of earlier ones."""
        found: dict[str, list[Question]] = {"question": []}
        for question in questions([self.task]):
            if question.part != "steps":
                found.setdefault(question.part, []).append(question)
        hops = sorted(int(name.removeprefix("hop")) for name in found if name != "question")
        return (
            Part(None, tuple(found["question"])),
            *(Part(hop, tuple(found[f"hop{hop}"])) for hop in hops),
        )

    def sample(self, part: Part, most: int = MOST_ITEMS) -> tuple[Question, ...]:
        """At most `most` questions of a part, chosen by the seed, in their order."""
        if len(part.questions) <= most:
            return part.questions
        rng = random.Random(f"{self.seed}:{self.task.name}:{part.name}")
        chosen = sorted(rng.sample(range(len(part.questions)), most))
        return tuple(part.questions[i] for i in chosen)

    def right(self, system: str, part: Part) -> dict[str, float]:
        """Item -> 1.0 or 0.0 of one system; empty if it was not measured, or only by losses."""
        return {
            row.item: row.value
            for row in self.results
            if (row.system, row.part) == (system, part.name) and row.metric != "answer_loss"
        }

    @property
    def systems(self) -> tuple[str, ...]:
        """The base, then the adapters."""
        return (BASE, *self.adapters)


@dataclass(frozen=True)
class CoverageProbe:
    """One probe; a frozen dataclass whose fields are its options."""

    formula: ClassVar[str]
    paper: ClassVar[str]

    def requests(self, context: ProbeContext) -> Iterable[Request]:
        """The continuations that have to be scored; none by default."""
        return ()

    def rows(self, context: ProbeContext, likely: Mapping[Request, Any]) -> Iterable[Coverage]:
        """The probe's figures. likely: a Likelihood for each of the probe's requests."""
        raise NotImplementedError


def choices_of(question: Question) -> tuple[str, ...]:
    """The choices of a question; () for hops, which are answered in words."""
    return question.item.choices if question.part == "question" else ()


def mean(values: Sequence[float]) -> float | None:
    """The mean; None if there are no values."""
    return sum(values) / len(values) if values else None


def mean_row(
    name: str,
    task: str,
    values: Sequence[float],
    clusters: Sequence[Any],
    *,
    hop: int | None = None,
    adapters: tuple[str, ...] = (),
    bounds: tuple[float, float] = (-math.inf, math.inf),
    baseline: float | None = None,
) -> Coverage:
    """The row of a mean over items with its cluster-robust t interval (95 %).

    clusters: a label for each value; values with equal labels form one cluster. With fewer than
    two clusters there is no interval. bounds: the smallest and the largest possible mean.
    """
    interval: Interval | None = None
    if len(set(clusters)) > 1:
        low, high = statistics.mean_interval(
            np.array(values, dtype=float), np.array(clusters, dtype=str)
        )
        interval = max(bounds[0], low), min(bounds[1], high)
    return Coverage(name, task, mean(values), len(values), hop, adapters, interval, baseline)
