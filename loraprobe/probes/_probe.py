"""The interface of coverage probes: requests to the base model, and rows made from its answers.

A probe first lists the continuations that it wants scored. `cover` collects the requests of all
probes and tasks and scores each distinct request once, in one pass over the base. A probe that
only reads the accuracies of the base and the single adapters requests nothing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from loraprobe.defaults import PROBED_ITEMS
from loraprobe.evaluation import statistics
from loraprobe.evaluation.questions import Question, lot, questions
from loraprobe.probes._names import MadeUpNames
from loraprobe.records import STEPS, Coverage, Interval, ItemPart, ItemResult, Progress
from loraprobe.registry import name_of
from loraprobe.tasks import Task, normalize_answer

if TYPE_CHECKING:
    from loraprobe.scoring import Likelihood, ModelScorer


class ScoreRequest(NamedTuple):
    """A request for the base model's likelihood of a continuation of a prompt.

    raw: without the chat template, for texts that are not questions.
    """

    prompt: str
    continuation: str
    raw: bool = False


def likelihoods(
    scorer: ModelScorer, requests: Sequence[ScoreRequest], progress: Progress | None = None
) -> dict[ScoreRequest, Likelihood]:
    """A Likelihood of the base for each distinct request: one call of the scorer for each form."""
    likely: dict[ScoreRequest, Likelihood] = {}
    distinct = list(dict.fromkeys(requests))
    for raw in (False, True):
        asked = [r for r in distinct if (r.raw and bool(scorer.chat_template)) == raw]
        if not asked:
            continue
        plain = scorer.with_template(False) if raw else scorer
        with plain.with_composition(None):
            scored = plain.loglikelihood([(r.prompt, r.continuation) for r in asked])
        likely.update(zip(asked, scored, strict=True))
        if progress is not None:
            progress("cover", len(likely), len(distinct))
    return likely


@dataclass(frozen=True, eq=False)
class ProbeContext:
    """One task, results of base and adapters, and the seed of all random draws.

    items: the most that a probe asks of each part.
    """

    task: Task
    adapters: tuple[str, ...]
    results: Sequence[ItemResult]
    tokenizer: Any
    items: int = PROBED_ITEMS
    seed: int = 0

    @cached_property
    def names(self) -> MadeUpNames:
        """Made-up names that are no words of the task."""
        texts = [
            text
            for item in self.task.items
            for text in (item.prompt, *item.answers, *(hop.prompt for hop in item.hops))
        ]
        return MadeUpNames(self.tokenizer, self.seed, texts)

    @cached_property
    def parts(self) -> dict[ItemPart, list[Question]]:
        """The composed question, then the hops; later hops contain gold answers of earlier ones."""
        asked = questions([self.task])
        return {p: [q for q in asked if q.part == p] for p in self.task.parts if p != STEPS}

    @cached_property
    def gold(self) -> dict[ItemPart, list[str]]:
        """The distinct first answers of all questions of each part."""
        gold = {}
        for part, asked in self.parts.items():
            firsts = [question.answers[0] for question in asked]
            gold[part] = list({normalize_answer(first): first for first in firsts}.values())
        return gold

    def sample(self, part: ItemPart) -> list[Question]:
        """At most `items` questions of a part, chosen by the seed, in their order."""
        asked = self.parts[part]
        if len(asked) <= self.items:
            return asked
        drawn = sorted(range(len(asked)), key=lambda i: lot(self.seed, [asked[i].item]))
        return [asked[i] for i in sorted(drawn[: self.items])]

    def right(self, system: str, part: ItemPart) -> dict[str, float]:
        """Item -> 1.0 or 0.0 of one system; empty if it was not measured, or only by losses."""
        wanted = self.task.name, system, part
        return {
            row.item: row.value
            for row in self.results
            if (row.task, row.system, row.part) == wanted and not row.is_loss
        }


@dataclass(frozen=True)
class CoverageProbe(ABC):
    """One probe. It has no options."""

    formula: ClassVar[str]
    paper: ClassVar[str]

    def requests(self, context: ProbeContext) -> Iterable[ScoreRequest]:
        """The continuations that have to be scored; none by default."""
        return ()

    @abstractmethod
    def rows(self, context: ProbeContext, likely: Mapping[ScoreRequest, Any]) -> Iterable[Coverage]:
        """The probe's figures. likely: a Likelihood for each of the probe's requests."""


class MeanProbe(CoverageProbe):
    """A probe whose figure is a mean over the questions of a part.

    bounds: the smallest and the largest possible value.
    """

    bounds: ClassVar[Interval] = (-math.inf, math.inf)

    @abstractmethod
    def wanted(self, context: ProbeContext, question: Question) -> Sequence[ScoreRequest]:
        """The requests of one question; none if the question does not count."""

    @abstractmethod
    def value(self, question: Question, scored: Sequence[Any]) -> tuple[float, float | None]:
        """The value of one question, and its baseline. scored: a Likelihood for each request."""

    def requests(self, context: ProbeContext) -> Iterable[ScoreRequest]:
        for part in context.parts:
            for question in context.sample(part):
                yield from self.wanted(context, question)

    def rows(self, context: ProbeContext, likely: Mapping[ScoreRequest, Any]) -> Iterable[Coverage]:
        """One row for each part with a question that counts.

        Its baseline is the mean of the questions' baselines; None if one has none.
        """
        for part in context.parts:
            values, baselines, clusters = [], [], []
            for question in context.sample(part):
                wanted = self.wanted(context, question)
                if wanted:
                    value, baseline = self.value(question, [likely[one] for one in wanted])
                    values.append(value)
                    baselines.append(baseline)
                    clusters.append(question.item.cluster)
            known = [baseline for baseline in baselines if baseline is not None]
            if values:
                yield mean_row(
                    name_of(self),
                    context.task.name,
                    values,
                    clusters,
                    hop=part.hop,
                    bounds=self.bounds,
                    baseline=mean(known) if len(known) == len(values) else None,
                )


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
