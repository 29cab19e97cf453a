"""Metrics by the likelihood of given texts; no reply is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from loraprobe.tasks.metrics._metric import Metric


@dataclass(frozen=True)
class Choice(Metric):
    """The choice of the highest log-likelihood per character, as acc_norm of lm-evaluation-harness;
    of equals the first."""

    generated = False
    reading = "the most likely choice is the answer; nothing is written."

    def texts(self, choices: tuple[str, ...], answers: tuple[str, ...]) -> tuple[str, ...]:
        return choices

    def scored(
        self, scores: Sequence[tuple[float, int]], texts: Sequence[str], answers: Sequence[str]
    ) -> tuple[float, str]:
        per_character = [
            logprob / len(text) for (logprob, _), text in zip(scores, texts, strict=True)
        ]
        taken = texts[per_character.index(max(per_character))]
        return float(taken in answers), taken


@dataclass(frozen=True)
class AnswerLoss(Metric):
    """Nats per token of the cheapest right answer; less is better."""

    generated = False
    reading = "the loss of the answer is measured; nothing is written."

    def scored(
        self, scores: Sequence[tuple[float, int]], texts: Sequence[str], answers: Sequence[str]
    ) -> tuple[float, str]:
        losses = [-logprob / tokens for logprob, tokens in scores]
        return min(zip(losses, texts, strict=True))
