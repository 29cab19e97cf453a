"""Measures the rank of the right answer among wrong answers of the same kind."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from loraprobe.evaluation.questions import Question
from loraprobe.probes._probe import (
    CoverageProbe,
    Part,
    ProbeContext,
    Request,
    choices_of,
    mean,
    mean_row,
)
from loraprobe.records import Coverage
from loraprobe.tasks import normalize_answer


@dataclass(frozen=True)
class GoldRank(CoverageProbe):
    """Rank of the right answer, by log-probability per token, among distractors.

    Distractors are the answers of the task's other items to the same part, or the item's other
    choices, drawn by the seed. A city is therefore compared with cities, so it does not help to
    know which kind of thing is asked for. Rank 1 is best and ties share the middle rank. `baseline`
    is the expected rank of a guess, (distractors + 2) / 2. distractors: their largest number.
    items: the largest number of items of each part that are asked.
    """

    distractors: int = 9
    items: int = 50

    formula: ClassVar[str] = "mean_i 1 + #{d: l(d) > l(gold)} + #{d: l(d) = l(gold)}/2, l a token"
    paper: ClassVar[str] = "-"

    def __post_init__(self) -> None:
        if self.distractors < 1 or self.items < 1:
            raise ValueError("distractors and items must be at least 1")

    def requests(self, context: ProbeContext) -> Iterable[Request]:
        for part in context.parts:
            for question in context.sample(part, self.items):
                drawn = self._drawn(context, part, question)
                if drawn:
                    for answer in (*question.answers, *drawn):
                        yield Request(question.prompt, answer)

    def rows(self, context: ProbeContext, likely: Mapping[Request, Any]) -> Iterable[Coverage]:
        for part in context.parts:
            ranks, guesses, clusters = [], [], []
            for question in context.sample(part, self.items):
                drawn = self._drawn(context, part, question)
                if not drawn:
                    continue

                def score(answer: str, prompt: str = question.prompt) -> float:
                    return likely[Request(prompt, answer)].per_token

                gold = max(score(answer) for answer in question.answers)
                others = [score(answer) for answer in drawn]
                above = sum(other > gold for other in others)
                ranks.append(1 + above + sum(other == gold for other in others) / 2)
                guesses.append((len(drawn) + 2) / 2)
                clusters.append(question.item.cluster)
            if ranks:
                yield mean_row(
                    "gold_rank",
                    context.task.name,
                    ranks,
                    clusters,
                    hop=part.hop,
                    bounds=(1.0, self.distractors + 1.0),
                    baseline=mean(guesses),
                )

    def _drawn(self, context: ProbeContext, part: Part, question: Question) -> list[str]:
        right = {normalize_answer(answer) for answer in question.answers}
        pool = choices_of(question) or part.gold
        others = [answer for answer in pool if normalize_answer(answer) not in right]
        if len(others) <= self.distractors:
            return others
        rng = random.Random(f"{context.seed}:{context.task.name}:{part.name}:{question.item.id}")
        return rng.sample(sorted(others), self.distractors)
