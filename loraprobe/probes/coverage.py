"""The probes of a task: whether base and adapters know its answers, its texts and its names."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from loraprobe.evaluation.questions import BASE, Question, lot
from loraprobe.evaluation.statistics import wilson
from loraprobe.probes._probe import CoverageProbe, MeanProbe, ProbeContext, ScoreRequest, mean
from loraprobe.records import Coverage
from loraprobe.scoring import joined
from loraprobe.tasks import normalize_answer

DISTRACTORS = 9  # the most with which a right answer is compared
LOWEST = 0.2  # the share of a text's tokens that Min-K%++ reads


class AnswerMargin(MeanProbe):
    """p(top) - p(gold) under the base at the answer's first token, averaged over items.

    It is 0 if the base's first choice is the right answer, and near 1 if the base is sure of a
    wrong one. It is also small if the base is sure of nothing, so read it together with
    `gold_rank`. Of several accepted answers the likeliest counts.
    """

    formula = "mean_i p(top | prompt_i) - p(gold_i | prompt_i), first answer token"
    paper = "arXiv 2601.06672"
    bounds = (0.0, 1.0)

    def wanted(self, context: ProbeContext, question: Question) -> list[ScoreRequest]:
        return [ScoreRequest(question.prompt, answer) for answer in question.answers]

    def value(self, question: Question, scored: Sequence[Any]) -> tuple[float, None]:
        return min(first_margin(likelihood) for likelihood in scored), None


def first_margin(likelihood: Any) -> float:
    """p(top) - p(gold) at the first token of a continuation, in [0, 1]."""
    top, gold = likelihood.top_logprobs[0], likelihood.token_logprobs[0]
    return max(0.0, math.exp(top) - math.exp(gold))


class GoldRank(MeanProbe):
    """Rank of the right answer, by log-probability per token, among distractors.

    Distractors are the answers of the task's other items to the same part, or the item's other
    choices, drawn by the seed. A city is therefore compared with cities, so it does not help to
    know which kind of thing is asked for. Rank 1 is best and ties share the middle rank. `baseline`
    is the expected rank of a guess, (distractors + 2) / 2.
    """

    formula = "mean_i 1 + #{d: l(d) > l(gold)} + #{d: l(d) = l(gold)}/2, l a token"
    paper = "-"
    bounds = (1.0, DISTRACTORS + 1.0)

    def wanted(self, context: ProbeContext, question: Question) -> list[ScoreRequest]:
        """The right answers, then the distractors; nothing where there are no distractors."""
        part = question.part
        right = {normalize_answer(answer) for answer in question.answers}
        choices = question.item.choices if part.hop is None else ()
        others = [a for a in choices or context.gold[part] if normalize_answer(a) not in right]
        if len(others) > DISTRACTORS:
            rng = random.Random(f"{lot(context.seed, [question.item])}:{part}")
            others = rng.sample(sorted(others), DISTRACTORS)
        answers = (*question.answers, *others) if others else ()
        return [ScoreRequest(question.prompt, answer) for answer in answers]

    def value(self, question: Question, scored: Sequence[Any]) -> tuple[float, float]:
        scores, right = [likelihood.per_token for likelihood in scored], len(question.answers)
        gold, others = max(scores[:right]), scores[right:]
        above = sum(other > gold for other in others)
        rank = 1 + above + sum(other == gold for other in others) / 2
        return rank, (len(others) + 2) / 2


class HopAccuracy(CoverageProbe):
    """Share of items for which the base, and each adapter alone, answers a hop correctly.

    Prompts of later hops contain the gold answers of earlier hops. `baseline` is the accuracy of
    always giving the most frequent answer.
    """

    formula = "mean_i [answer_i is right]"
    paper = "-"

    def rows(self, context: ProbeContext, likely: Mapping[ScoreRequest, Any]) -> Iterable[Coverage]:
        for part, asked in context.parts.items():
            if part.hop is None:
                continue
            clusters = {q.item.id: q.item.cluster for q in asked}
            accepted = ({normalize_answer(a) for a in q.answers} for q in asked)
            counts = Counter(answer for answers in accepted for answer in answers)
            for system in (BASE, *context.adapters):
                right = context.right(system, part)
                items = [item for item in clusters if item in right]
                if not items:
                    continue
                hits = [right[item] for item in items]
                yield Coverage(
                    "hop_accuracy",
                    context.task.name,
                    mean(hits),
                    len(hits),
                    part.hop,
                    () if system == BASE else (system,),
                    wilson(np.array(hits), np.array([clusters[i] for i in items])),
                    max(counts.values()) / len(asked),
                )


class MinKPlusPlus(MeanProbe):
    """Min-K%++ of prompt and right answer as one text, averaged over items.

    Each token's log-probability is normalised by the mean and the standard deviation of log p over
    the vocabulary at its position. The lowest fifth of these values is averaged. A higher value
    means that the text was more likely seen in pretraining. The level depends on the base and on
    the wording, so `baseline` is the value of the same texts with made-up names, if all items list
    `entities`.
    """

    formula = "mean of the lowest fifth of (log p(x_t | x_<t) - mu_t) / sigma_t"
    paper = "arXiv 2404.02936"

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
        lowest = scores[: max(1, int(len(scores) * LOWEST))]
        return sum(lowest) / len(lowest)


class NameSwap(MeanProbe):
    """How much likelier the right answer is after the real names than after made-up names.

    The difference is in nats of the whole answer, under the base. Made-up names have as many tokens
    as the real ones. A name of the prompt that the answer repeats is replaced in the answer too, so
    that copying has no effect.

    It is 0 if the names mean nothing to the base, and large if the base connects the answer with
    them. Only items that list `entities` count, and only parts whose prompt contains one.
    """

    formula = "mean_i log p(gold_i | prompt_i) - log p(gold_i | prompt_i swapped)"
    paper = "arXiv 2506.13479 (fake, half real and real names)"

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
