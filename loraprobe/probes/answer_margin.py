"""Measures how much more likely the base finds its first choice than the right answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from loraprobe.evaluation.asking import ScoreRequest
from loraprobe.evaluation.plan import Question
from loraprobe.probes._probe import MeanProbe, ProbeContext


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

    def value(self, question: Question, found: Sequence[Any]) -> tuple[float, None]:
        return min(first_margin(likelihood) for likelihood in found), None


def first_margin(likelihood: Any) -> float:
    """p(top) - p(gold) at the first token of a continuation, in [0, 1]."""
    top, gold = likelihood.top_logprobs[0], likelihood.token_logprobs[0]
    return max(0.0, math.exp(top) - math.exp(gold))
