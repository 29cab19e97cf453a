"""Measures with Min-K%++ whether the base has seen such texts in pretraining."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from loraprobe.evaluation.questions import Question
from loraprobe.probes._probe import (
    MOST_ITEMS,
    CoverageProbe,
    ProbeContext,
    Request,
    mean,
    mean_row,
)
from loraprobe.records import Coverage
from loraprobe.scoring import joined


@dataclass(frozen=True)
class MinKPlusPlus(CoverageProbe):
    """Min-K%++ of prompt and right answer as one text, averaged over items.

    Each token's log-probability is normalised by the mean and the standard deviation of log p over
    the vocabulary at its position. The lowest share `k` of these values is averaged. A higher value
    means that the text was more likely seen in pretraining. The level depends on the base and on
    the wording, so `baseline` is the value of the same texts with made-up names, if all items list
    `entities`. items: the largest number of items of each part that are asked.
    """

    k: float = 0.2
    items: int = MOST_ITEMS

    formula: ClassVar[str] = "mean of the lowest k of (log p(x_t | x_<t) - mu_t) / sigma_t"
    paper: ClassVar[str] = "arXiv 2404.02936"

    def __post_init__(self) -> None:
        if not 0 < self.k <= 1:
            raise ValueError("k must lie above 0 and at most at 1")

    def requests(self, context: ProbeContext) -> Iterable[Request]:
        for part in context.parts:
            for question in context.sample(part, self.items):
                yield _text(question.prompt, question.answers[0])
                swap = _swapped(context, question)
                if swap is not None:
                    yield swap

    def rows(self, context: ProbeContext, likely: Mapping[Request, Any]) -> Iterable[Coverage]:
        for part in context.parts:
            asked = context.sample(part, self.items)
            real = [self.of(likely[_text(q.prompt, q.answers[0])]) for q in asked]
            swaps = [swap for q in asked if (swap := _swapped(context, q)) is not None]
            made_up = [self.of(likely[swap]) for swap in swaps]
            yield mean_row(
                "min_k_plus_plus",
                context.task.name,
                real,
                [question.item.cluster for question in asked],
                hop=part.hop,
                baseline=mean(made_up) if len(made_up) == len(asked) else None,
            )

    def of(self, likelihood: Any) -> float:
        """Min-K%++ of one text."""
        tokens = zip(likelihood.token_logprobs, likelihood.mean, likelihood.std, strict=True)
        # The deviation is 0 where the model is certain; the token that it expects then scores 0.
        scores = sorted((logp - mu) / max(sigma, 1e-6) for logp, mu, sigma in tokens)
        lowest = scores[: max(1, int(len(scores) * self.k))]
        return sum(lowest) / len(lowest)


def _text(prompt: str, answer: str) -> Request:
    return Request("", prompt + joined(prompt, answer), raw=True)


def _swapped(context: ProbeContext, question: Question) -> Request | None:
    swap = context.names.swapped_pair(question.prompt, question.answers[0], question.item.entities)
    return None if swap is None else _text(*swap)
