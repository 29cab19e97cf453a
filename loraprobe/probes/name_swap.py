"""Measures whether the base knows the names in a question."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from loraprobe.evaluation.questions import Question
from loraprobe.probes._probe import (
    MOST_ITEMS,
    CoverageProbe,
    Part,
    ProbeContext,
    Request,
    mean_row,
)
from loraprobe.records import Coverage


@dataclass(frozen=True)
class NameSwap(CoverageProbe):
    """How much likelier the right answer is after the real names than after made-up names.

    The difference is in nats of the whole answer, under the base. Made-up names have as many tokens
    as the real ones. A name of the prompt that the answer repeats is replaced in the answer too, so
    that copying has no effect.

    It is 0 if the names mean nothing to the base, and large if the base connects the answer with
    them. Only items that list `entities` count, and only parts whose prompt contains one. items:
    the largest number of items of each part that are asked.
    """

    items: int = MOST_ITEMS

    formula: ClassVar[str] = "mean_i log p(gold_i | prompt_i) - log p(gold_i | prompt_i swapped)"
    paper: ClassVar[str] = "arXiv 2506.13479 (fake, half real and real names)"

    def requests(self, context: ProbeContext) -> Iterable[Request]:
        for part in context.parts:
            for _, pairs in self._swaps(context, part):
                for real, swapped in pairs:
                    yield real
                    yield swapped

    def rows(self, context: ProbeContext, likely: Mapping[Request, Any]) -> Iterable[Coverage]:
        for part in context.parts:
            differences, clusters = [], []
            for question, pairs in self._swaps(context, part):
                real = max(likely[pair[0]].logprob for pair in pairs)
                swapped = max(likely[pair[1]].logprob for pair in pairs)
                differences.append(real - swapped)
                clusters.append(question.item.cluster)
            if differences:
                yield mean_row(
                    "name_swap",
                    context.task.name,
                    differences,
                    clusters,
                    hop=part.hop,
                    baseline=0.0,
                )

    def _swaps(
        self, context: ProbeContext, part: Part
    ) -> Iterable[tuple[Question, list[tuple[Request, Request]]]]:
        """Questions with names; for each answer the request with real and with made-up names."""
        for question in context.sample(part, self.items):
            pairs = []
            for answer in question.answers:
                swap = context.names.swapped_pair(question.prompt, answer, question.item.entities)
                if swap is not None:
                    pairs.append((Request(question.prompt, answer), Request(*swap)))
            if pairs:
                yield question, pairs
