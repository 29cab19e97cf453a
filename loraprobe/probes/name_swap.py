"""Measures whether the base knows the names in a question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from loraprobe.evaluation.asking import ScoreRequest
from loraprobe.evaluation.plan import Question
from loraprobe.probes._probe import MeanProbe, ProbeContext


@dataclass(frozen=True)
class NameSwap(MeanProbe):
    """How much likelier the right answer is after the real names than after made-up names.

    The difference is in nats of the whole answer, under the base. Made-up names have as many tokens
    as the real ones. A name of the prompt that the answer repeats is replaced in the answer too, so
    that copying has no effect.

    It is 0 if the names mean nothing to the base, and large if the base connects the answer with
    them. Only items that list `entities` count, and only parts whose prompt contains one. items:
    the largest number of items of each part that are asked.
    """

    formula: ClassVar[str] = "mean_i log p(gold_i | prompt_i) - log p(gold_i | prompt_i swapped)"
    paper: ClassVar[str] = "arXiv 2506.13479 (fake, half real and real names)"

    def wanted(self, context: ProbeContext, question: Question) -> list[ScoreRequest]:
        """For each answer, the request with the real and the one with the made-up names."""
        wanted = []
        for answer in question.answers:
            swap = context.names.swapped_pair(question.prompt, answer, question.item.entities)
            if swap is not None:
                wanted += [ScoreRequest(question.prompt, answer), ScoreRequest(*swap)]
        return wanted

    def value(self, question: Question, found: Sequence[Any]) -> tuple[float, float]:
        logprobs = [likelihood.logprob for likelihood in found]
        return max(logprobs[::2]) - max(logprobs[1::2]), 0.0
