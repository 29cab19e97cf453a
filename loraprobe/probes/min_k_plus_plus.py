"""Whether the base has seen such texts: Min-K%++."""

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
    clusters_of,
    mean,
)
from loraprobe.probes._statistics import mean_interval
from loraprobe.records import Coverage
from loraprobe.scoring import joined


@dataclass(frozen=True)
class MinKPlusPlus(CoverageProbe):
    """Min-K%++ of prompt and right answer read as one text, averaged over items.

    Each token's log-probability is normalised by mean and standard deviation of log p over the
    vocabulary at its position, and the lowest `k` of them are averaged; higher means likelier to
    have been seen in pretraining. The level depends on base and wording, so `baseline` holds the
    same texts with made-up names (where items list `entities`). `items`: the most items
    of each part that are asked.
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
            yield Coverage(
                "min_k_plus_plus",
                context.task.name,
                mean(real),
                len(asked),
                part.hop,
                ci95=mean_interval(real, clusters_of(asked)),
                baseline=mean(made_up) if len(made_up) == len(asked) else None,
            )

    def of(self, likelihood: Any) -> float:
        """The figure of one text from its tokens' log-probabilities and their moments."""
        tokens = zip(likelihood.token_logprobs, likelihood.mean, likelihood.std, strict=True)
        # A position where the model is certain has no spread; what it is certain of scores 0.
        scores = sorted((logp - mu) / max(sigma, 1e-6) for logp, mu, sigma in tokens)
        lowest = scores[: max(1, int(len(scores) * self.k))]
        return sum(lowest) / len(lowest)


def _text(prompt: str, answer: str) -> Request:
    return Request("", prompt + joined(prompt, answer), raw=True)


def _swapped(context: ProbeContext, question: Question) -> Request | None:
    swap = context.names.swapped_pair(question.prompt, question.answers[0], question.item.entities)
    return None if swap is None else _text(*swap)
