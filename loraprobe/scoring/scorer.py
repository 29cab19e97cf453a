"""Scorer: what an evaluation asks, whatever engine answers."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Self

from loraprobe.composition import Composition
from loraprobe.errors import UsageError
from loraprobe.scoring.encoding import Encoder, tokens_left
from loraprobe.scoring.generation import Written, decoded
from loraprobe.scoring.likelihood import Likelihood

NEW_TOKENS = 32  # of a text, where the caller sets no limit


class Scorer(ABC):
    """What an evaluation asks: a model in memory (`ModelScorer`), or one of a server.

    encoder: tokenizes prompts, and fills them into the chat template. context: the most tokens of
    a sequence; None for no limit. stops: the ids that end a text. vocab_size: the width of the
    logits. One that answers for the same base has them from `local`, the scorer of transformers.
    """

    encoder: Encoder
    context: int | None
    stops: Sequence[int]
    vocab_size: int

    def __init__(self, local: Scorer) -> None:
        self.encoder, self.context = local.encoder, local.context
        self.stops, self.vocab_size = local.stops, local.vocab_size

    @abstractmethod
    def with_composition(self, composition: Composition | None) -> AbstractContextManager[Scorer]:
        """The scorer to ask about a composition while the context lasts; None: the base."""

    @abstractmethod
    def write_all(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = NEW_TOKENS,
        until_newline: bool = False,
        until: Callable[[str], bool] | None = None,
    ) -> list[Written]:
        """The greedy continuation of each prompt, in the given order.

        It ends at an end token, after max_new_tokens, or where the context is full. With
        until_newline it is the first line that is not blank; else it ends where `until` is true of
        its lines so far, as of all that go on from there. It contains no special tokens. Repeated
        prompts are computed once. Raises UsageError for a limit below 1, TaskError, which quotes
        the prompt, for a prompt that the context cannot hold.
        """

    @abstractmethod
    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """The Likelihood of each (prompt, continuation), in the given order.

        `Encoder.pairs` defines how they are joined. Raises TaskError for an empty continuation or
        one that the context cannot hold.
        """

    @abstractmethod
    def note(self) -> str:
        """A note for the report on what did not go as planned; "" if all did."""

    def close(self) -> None:
        """Gives back what was loaded for it; a model in memory is its owner's."""
        return None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids without special tokens."""
        return decoded(self.encoder.tokenizer, ids)

    @property
    def chat_template(self) -> bool:
        """Whether prompts are filled into the tokenizer's chat template."""
        return self.encoder.chat

    def with_template(self, chat_template: bool) -> Self:
        """A scorer on the same engine with or without the chat template."""
        if chat_template == self.chat_template:
            return self
        other = copy.copy(self)
        other.encoder = replace(self.encoder, chat=chat_template)
        return other

    def encoded(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], int]]:
        """`Encoder.pairs`. Raises TaskError for a pair that the context cannot hold."""
        encoded = self.encoder.pairs(pairs)
        for (ids, _), (prompt, text) in zip(encoded, pairs, strict=True):
            tokens_left(self.context, ids[:-1], prompt or text, 1, " with its answer")
        return encoded

    def rooms(self, prompts: Sequence[str], wanted: int) -> dict[str, tuple[list[int], int]]:
        """Token ids of each distinct prompt, and how many tokens may follow it, at most `wanted`.

        Raises UsageError for a limit below 1, TaskError for a prompt that the context cannot hold.
        """
        if wanted < 1:
            raise UsageError(f"max_new_tokens must be at least 1, not {wanted}.")
        unique = list(dict.fromkeys(prompts))
        return {
            prompt: (ids, tokens_left(self.context, ids, prompt, wanted))
            for prompt, ids in zip(unique, self.encoder.prompts(unique), strict=True)
        }
