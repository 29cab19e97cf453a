"""Measures the rank of the right answer among wrong answers of the same kind."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from loraprobe.evaluation.asking import ScoreRequest
from loraprobe.evaluation.plan import Question
from loraprobe.probes._probe import MeanProbe, ProbeContext
from loraprobe.tasks import normalize_answer


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
        drawn = self._drawn(context, question)
        answers = (*question.answers, *drawn) if drawn else ()
        return [ScoreRequest(question.prompt, answer) for answer in answers]

    def value(self, question: Question, found: Sequence[Any]) -> tuple[float, float]:
        scores, right = [likelihood.per_token for likelihood in found], len(question.answers)
        gold, others = max(scores[:right]), scores[right:]
        above = sum(other > gold for other in others)
        rank = 1 + above + sum(other == gold for other in others) / 2
        return rank, (len(others) + 2) / 2

    def _drawn(self, context: ProbeContext, question: Question) -> list[str]:
        part = context.part(question.part)
        right = {normalize_answer(answer) for answer in question.answers}
        choices = question.item.choices if part.hop is None else ()
        pool = choices or part.gold
        others = [answer for answer in pool if normalize_answer(answer) not in right]
        if len(others) <= self.distractors:
            return others
        rng = random.Random(f"{context.seed}:{context.task.name}:{part.name}:{question.item.id}")
        return rng.sample(sorted(others), self.distractors)
