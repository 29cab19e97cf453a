"""Probes of familiarity: whether the base knows such texts, and the names in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from loraprobe.evaluation.plan import Question
from loraprobe.probes._probe import MeanProbe, ProbeContext, ScoreRequest
from loraprobe.scoring import joined


@dataclass(frozen=True)
class MinKPlusPlus(MeanProbe):
    """Min-K%++ of prompt and right answer as one text, averaged over items.

    Each token's log-probability is normalised by the mean and the standard deviation of log p over
    the vocabulary at its position. The lowest share `k` of these values is averaged. A higher value
    means that the text was more likely seen in pretraining. The level depends on the base and on
    the wording, so `baseline` is the value of the same texts with made-up names, if all items list
    `entities`. items: the largest number of items of each part that are asked.
    """

    k: float = 0.2

    formula: ClassVar[str] = "mean of the lowest k of (log p(x_t | x_<t) - mu_t) / sigma_t"
    paper: ClassVar[str] = "arXiv 2404.02936"

    def __post_init__(self) -> None:
        if not 0 < self.k <= 1:
            raise ValueError("k must lie above 0 and at most at 1")

    def wanted(self, context: ProbeContext, question: Question) -> list[ScoreRequest]:
        """The text, and the text with made-up names if it has names."""
        prompt, answer = question.prompt, question.answers[0]
        swap = context.names.swapped_pair(prompt, answer, question.item.entities)
        texts = [(prompt, answer), *([swap] if swap is not None else [])]
        return [
            ScoreRequest("", before + joined(before, after), raw=True) for before, after in texts
        ]

    def value(self, question: Question, scored: Sequence[Any]) -> tuple[float, float | None]:
        real, *made_up = (self.of(likelihood) for likelihood in scored)
        return real, made_up[0] if made_up else None

    def of(self, likelihood: Any) -> float:
        """Min-K%++ of one text."""
        tokens = zip(likelihood.token_logprobs, likelihood.mean, likelihood.std, strict=True)
        # The deviation is 0 where the model is certain; the token that it expects then scores 0.
        scores = sorted((logp - mu) / max(sigma, 1e-6) for logp, mu, sigma in tokens)
        lowest = scores[: max(1, int(len(scores) * self.k))]
        return sum(lowest) / len(lowest)


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

    def value(self, question: Question, scored: Sequence[Any]) -> tuple[float, float]:
        logprobs = [likelihood.logprob for likelihood in scored]
        return max(logprobs[::2]) - max(logprobs[1::2]), 0.0
