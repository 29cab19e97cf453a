"""Measures how much more likely the base finds its first choice than the right answer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from loraprobe.probes._probe import MOST_ITEMS, CoverageProbe, ProbeContext, Request, mean_row
from loraprobe.records import Coverage


@dataclass(frozen=True)
class AnswerMargin(CoverageProbe):
    """p(top) - p(gold) under the base at the answer's first token, averaged over items.

    It is 0 if the base's first choice is the right answer, and near 1 if the base is sure of a
    wrong one. It is also small if the base is sure of nothing, so read it together with
    `gold_rank`. Of several accepted answers the likeliest counts. items: the largest number of
    items of each part that are asked.
    """

    items: int = MOST_ITEMS

    formula: ClassVar[str] = "mean_i p(top | prompt_i) - p(gold_i | prompt_i), first answer token"
    paper: ClassVar[str] = "arXiv 2601.06672"

    def requests(self, context: ProbeContext) -> Iterable[Request]:
        for part in context.parts:
            for question in context.sample(part, self.items):
                for answer in question.answers:
                    yield Request(question.prompt, answer)

    def rows(self, context: ProbeContext, likely: Mapping[Request, Any]) -> Iterable[Coverage]:
        for part in context.parts:
            asked = context.sample(part, self.items)
            margins = []
            for question in asked:
                found = [likely[Request(question.prompt, answer)] for answer in question.answers]
                margins.append(min(first_margin(answer) for answer in found))
            clusters = [question.item.cluster for question in asked]
            yield mean_row(
                "answer_margin",
                context.task.name,
                margins,
                clusters,
                hop=part.hop,
                bounds=(0.0, 1.0),
            )


def first_margin(likelihood: Any) -> float:
    """p(top) - p(gold) at the first token of a continuation, in [0, 1]."""
    top, gold = likelihood.top_logprobs[0], likelihood.token_logprobs[0]
    return max(0.0, math.exp(top) - math.exp(gold))
