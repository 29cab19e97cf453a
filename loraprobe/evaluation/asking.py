"""Asks a model: the questions of tasks, and how likely the base finds a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraprobe.evaluation.questions import Question, TokenLimits
from loraprobe.records import ItemResult, Progress

if TYPE_CHECKING:
    from loraprobe.scoring import Likelihood, Scorer


@dataclass(frozen=True)
class Request:
    """Asks how likely the base model finds this continuation of this prompt.

    raw: ask without the chat template, for texts that are not questions.
    """

    prompt: str
    continuation: str
    raw: bool = False


def ask(
    scorer: Scorer, batch: Sequence[Question], system: str, limits: TokenLimits
) -> list[ItemResult]:
    """The results of a batch, in its order, from a scorer whose model carries the system."""
    found: dict[int, ItemResult] = {}
    for worked in (False, True):
        asked = [i for i, q in enumerate(batch) if q.metric == "exact_match" and q.worked == worked]
        if asked:
            texts = scorer.generate(
                [batch[i].prompt for i in asked],
                max_new_tokens=limits.worked if worked else limits.plain,
                until_newline=not worked,
            )
            found.update(
                (i, batch[i].judged(system, text)) for i, text in zip(asked, texts, strict=True)
            )
    for metric in ("choice", "answer_loss"):
        asked = [i for i, q in enumerate(batch) if q.metric == metric]
        if asked:
            results = _scored(scorer, [batch[i] for i in asked], system)
            found.update(zip(asked, results, strict=True))
    return [found[i] for i in range(len(batch))]


def _scored(scorer: Scorer, batch: Sequence[Question], system: str) -> Iterator[ItemResult]:
    """The results of questions that are judged by likelihood."""
    options = [q.item.choices if q.metric == "choice" else q.answers for q in batch]
    pairs = [(q.prompt, text) for q, texts in zip(batch, options, strict=True) for text in texts]
    scores = iter(scorer.loglikelihood(pairs))
    for q, texts in zip(batch, options, strict=True):
        likely = [next(scores) for _ in texts]
        if q.metric == "choice":
            yield q.chosen(system, [found.logprob for found in likely])
        else:  # nats per token of the cheapest accepted answer
            losses = [-found.logprob / found.tokens for found in likely]
            yield q.result(system, *min(zip(losses, texts, strict=True)))


def likelihoods(
    scorer: Scorer, requests: Sequence[Request], progress: Progress | None = None
) -> dict[Request, Likelihood]:
    """A Likelihood of the base for each distinct request: one call of the scorer for each form."""
    likely: dict[Request, Likelihood] = {}
    distinct = list(dict.fromkeys(requests))
    for raw in (False, True):
        asked = [r for r in distinct if (r.raw and bool(scorer.chat_template)) == raw]
        if not asked:
            continue
        plain = scorer.with_template(False) if raw else scorer
        with plain.with_composition(None):
            found = plain.loglikelihood([(r.prompt, r.continuation) for r in asked])
        likely.update(zip(asked, found, strict=True))
        if progress is not None:
            progress("cover", len(likely), len(distinct))
    return likely
