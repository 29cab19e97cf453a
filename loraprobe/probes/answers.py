"""Probes of right answers: whether the base, and each adapter, knows them."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from loraprobe.evaluation.plan import Question
from loraprobe.evaluation.statistics import wilson
from loraprobe.probes._probe import BASE, CoverageProbe, MeanProbe, ProbeContext, ScoreRequest, mean
from loraprobe.records import Coverage
from loraprobe.tasks import normalize_answer


@dataclass(frozen=True)
class AnswerMargin(MeanProbe):
    """p(top) - p(gold) under the base at the answer's first token, averaged over items.

    It is 0 if the base's first choice is the right answer, and near 1 if the base is sure of a
    wrong one. It is also small if the base is sure of nothing, so read it together with
    `gold_rank`. Of several accepted answers the likeliest counts. items: the largest number of
    items of each part that are asked.
    """

    formula: ClassVar[str] = "mean_i p(top | prompt_i) - p(gold_i | prompt_i), first answer token"
    paper: ClassVar[str] = "arXiv 2601.06672"

    @property
    def bounds(self) -> tuple[float, float]:
        return 0.0, 1.0

    def wanted(self, context: ProbeContext, question: Question) -> list[ScoreRequest]:
        return [ScoreRequest(question.prompt, answer) for answer in question.answers]

    def value(self, question: Question, scored: Sequence[Any]) -> tuple[float, None]:
        return min(first_margin(likelihood) for likelihood in scored), None


def first_margin(likelihood: Any) -> float:
    """p(top) - p(gold) at the first token of a continuation, in [0, 1]."""
    top, gold = likelihood.top_logprobs[0], likelihood.token_logprobs[0]
    return max(0.0, math.exp(top) - math.exp(gold))


@dataclass(frozen=True)
class GoldRank(MeanProbe):
    """Rank of the right answer, by log-probability per token, among distractors.

    Distractors are the answers of the task's other items to the same part, or the item's other
    choices, drawn by the seed. A city is therefore compared with cities, so it does not help to
    know which kind of thing is asked for. Rank 1 is best and ties share the middle rank. `baseline`
    is the expected rank of a guess, (distractors + 2) / 2. distractors: their largest number.
    items: the largest number of items of each part that are asked.
    """

    items: int = 50
    distractors: int = 9

    formula: ClassVar[str] = "mean_i 1 + #{d: l(d) > l(gold)} + #{d: l(d) = l(gold)}/2, l a token"
    paper: ClassVar[str] = "-"

    def __post_init__(self) -> None:
        if self.distractors < 1 or self.items < 1:
            raise ValueError("distractors and items must be at least 1")

    @property
    def bounds(self) -> tuple[float, float]:
        return 1.0, self.distractors + 1.0

    def wanted(self, context: ProbeContext, question: Question) -> list[ScoreRequest]:
        """The right answers, then the distractors; nothing where there are no distractors."""
        part = context.part(question.part)
        right = {normalize_answer(answer) for answer in question.answers}
        choices = question.item.choices if part.name.hop is None else ()
        others = [a for a in choices or part.gold if normalize_answer(a) not in right]
        if len(others) > self.distractors:
            item = question.item.id
            rng = random.Random(f"{context.seed}:{context.task.name}:{part.name}:{item}")
            others = rng.sample(sorted(others), self.distractors)
        answers = (*question.answers, *others) if others else ()
        return [ScoreRequest(question.prompt, answer) for answer in answers]

    def value(self, question: Question, scored: Sequence[Any]) -> tuple[float, float]:
        scores, right = [likelihood.per_token for likelihood in scored], len(question.answers)
        gold, others = max(scores[:right]), scores[right:]
        above = sum(other > gold for other in others)
        rank = 1 + above + sum(other == gold for other in others) / 2
        return rank, (len(others) + 2) / 2


@dataclass(frozen=True)
class HopAccuracy(CoverageProbe):
    """Share of items for which the base, and each adapter alone, answers a hop correctly.

    Prompts of later hops contain the gold answers of earlier hops. `baseline` is the accuracy of
    always giving the most frequent answer.
    """

    formula: ClassVar[str] = "mean_i [answer_i is right]"
    paper: ClassVar[str] = "-"

    def rows(self, context: ProbeContext, likely: Mapping[ScoreRequest, Any]) -> Iterable[Coverage]:
        for part in context.parts:
            if part.name.hop is None:
                continue
            clusters = {q.item.id: q.item.cluster for q in part.questions}
            accepted = ({normalize_answer(a) for a in q.answers} for q in part.questions)
            counts = Counter(answer for answers in accepted for answer in answers)
            for system in (BASE, *context.adapters):
                right = context.right(system, part)
                items = [item for item in clusters if item in right]
                if not items:
                    continue
                hits = [right[item] for item in items]
                yield Coverage(
                    "hop_accuracy",
                    context.task.name,
                    mean(hits),
                    len(hits),
                    part.name.hop,
                    () if system == BASE else (system,),
                    wilson(np.array(hits), np.array([clusters[i] for i in items])),
                    max(counts.values()) / len(part.questions),
                )
