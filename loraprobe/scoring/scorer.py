"""Scorer: one loaded model, asked many questions under many compositions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from loraprobe.errors import TaskError, UsageError
from loraprobe.records import Progress
from loraprobe.scoring.batching import Batcher
from loraprobe.scoring.continuations import Continuations
from loraprobe.scoring.encoding import Encoder
from loraprobe.scoring.forward import answering, seeded, tail_logits
from loraprobe.scoring.generation import (
    NewlineTokens,
    first_line,
    generate_batch,
    stop_ids,
)
from loraprobe.scoring.likelihood import Likelihood, token_statistics

SAMPLED = 16  # texts drawn at once


class Insertable(Protocol):
    """What `with_composition` takes: a Composition."""

    def into(self, model: Any) -> contextlib.AbstractContextManager[Any]: ...


class Scorer:
    """Generations and log-likelihoods of one model.

    model, tokenizer: a transformers causal model and its tokenizer, which are used as they are
    (a model in training mode is in evaluation mode only while it answers). batch_size: sequences
    at once, or "auto". chat_template: whether prompts are user turns. progress is called as
    progress(stage, done, total) with the prompts that are done.

    Raises UsageError for an encoder-decoder, a bad batch size, or a missing chat template.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int | Literal["auto"] = "auto",
        chat_template: bool = False,
        max_new_tokens: int = 32,
        progress: Progress | None = None,
    ) -> None:
        if getattr(model.config, "is_encoder_decoder", False):
            raise UsageError(
                f"{type(model).__name__} is an encoder-decoder; loraprobe evaluates "
                "causal models only."
            )
        self.model, self.tokenizer = model, tokenizer
        self.max_new_tokens, self.progress, self.batch_size = max_new_tokens, progress, batch_size
        self.encoder = Encoder(tokenizer, chat_template, self.vocab_size)
        self.batcher = Batcher.of(batch_size, model.device)
        self.newlines = NewlineTokens(tokenizer)
        self.stops = stop_ids(model, tokenizer)
        fill = (*self.stops, tokenizer.pad_token_id)  # masked, but looked up in the embedding
        self.pad = next((i for i in fill if i is not None and i < self.vocab_size), 0)

    @property
    def chat_template(self) -> bool:
        """Whether prompts are filled into the tokenizer's chat template."""
        return self.encoder.chat

    @property
    def vocab_size(self) -> int:
        """Width of the model's logits."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def context(self) -> int | None:
        """How many tokens the model has positions for; None if it sets no limit."""
        length = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return int(length) if length and length > 0 else None

    def with_template(self, chat_template: bool) -> Scorer:
        """The same model asked with or without its chat template."""
        if chat_template == self.chat_template:
            return self
        other = Scorer(
            self.model,
            self.tokenizer,
            batch_size=self.batch_size,
            chat_template=chat_template,
            max_new_tokens=self.max_new_tokens,
            progress=self.progress,
        )
        other.batcher, other.newlines = self.batcher, self.newlines
        return other

    @contextlib.contextmanager
    def with_composition(self, composition: Insertable | None) -> Iterator[Scorer]:
        """This scorer, with a composition in its model; None is the base model."""
        with composition.into(self.model) if composition is not None else contextlib.nullcontext():
            yield self

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int | None = None,
        until_newline: bool = False,
    ) -> list[str]:
        """The greedy continuation of each prompt, in the given order.

        It ends at an end token or after max_new_tokens, fewer where the context is full. With
        until_newline it is the first line that holds more than white space. Special tokens are
        left out. Raises TaskError, quoting the prompt, for one that the context cannot hold.
        """
        limit = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        if limit < 1:
            raise UsageError(f"max_new_tokens must be at least 1, not {limit}.")
        unique = list(dict.fromkeys(prompts))
        ids = self.encoder.prompts(unique)
        room = [self.room(row, prompt, limit) for row, prompt in zip(ids, unique, strict=True)]
        answers: dict[str, str] = {}

        def work(batch: Sequence[int]) -> None:
            new = generate_batch(
                self.model,
                [ids[i] for i in batch],
                pad=self.pad,
                stops=self.stops,
                max_new_tokens=room[batch[0]],
                stopper=self.newlines.stopper() if until_newline else None,
            )
            for i, tokens in zip(batch, new, strict=True):
                text = self.decode(tokens)
                answers[unique[i]] = first_line(text) if until_newline else text

        # A batch shares its number of new tokens: prompts near the context's end go apart.
        batches = (
            [group[i] for i in batch]
            for size in sorted(set(room), reverse=True)
            for group in ([i for i in range(len(unique)) if room[i] == size],)
            for batch in self.batcher.split([len(ids[i]) + size for i in group])
        )
        self.run("generate", batches, work, len(unique))
        return [answers[prompt] for prompt in prompts]

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        max_new_tokens: int | None = None,
        temperature: float = 1.0,
        until_newline: bool = False,
    ) -> list[str]:
        """n texts that the model writes of itself, where a user would speak.

        They start from BOS, or with a chat template from an empty user turn. Seeded; the global
        generator is left as it was.
        """
        row = self.encoder.raw(self.encoder.opening())
        limit = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        found: list[str] = []

        def work(batch: Sequence[int]) -> None:
            new = generate_batch(
                self.model,
                [row] * len(batch),
                pad=self.pad,
                stops=self.stops,
                max_new_tokens=self.room(row, "", limit),
                stopper=self.newlines.stopper() if until_newline else None,
                sample=temperature,
            )
            texts = [self.decode(tokens) for tokens in new]
            found.extend(first_line(text) if until_newline else text for text in texts)

        with answering(self.model), seeded(seed, self.model.device):
            while len(found) < n:  # draws follow this size, so no --batch-size changes it
                self.batcher.run(range(min(n - len(found), SAMPLED)), work)
        return found

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """How likely each (prompt, continuation) is, in the given order.

        The seam is `Encoder.pairs`'s. A prompt with several continuations is read once where the
        model's cache allows. Raises TaskError for an empty continuation or one that the context
        cannot hold.
        """
        unique = list(dict.fromkeys(pairs))
        encoded = self.encoder.pairs(unique)
        for (ids, _), (prompt, _) in zip(encoded, unique, strict=True):
            self.room(ids[:-1], prompt, 1, " with its answer")
        found: dict[tuple[str, str], Likelihood] = {}

        def keep(indices: Sequence[int], logits: Tensor) -> None:
            for i in indices:
                ids, start = encoded[i]
                gold = torch.tensor(ids[start:], device=logits.device)
                own = token_statistics(logits, gold)
                found[unique[i]] = own.likelihood(len(unique[i][1]))

        work = Continuations(encoded).read(
            self.model, self.batcher, self.pad, self.vocab_size, keep
        )
        with answering(self.model):
            for batch, step in work:
                self.batcher.run(batch, step)
                self._report("score", len(found), len(unique))
        return [found[pair] for pair in pairs]

    def first_token_distribution(self, prompts: Sequence[str]) -> Tensor:
        """Log-probabilities of the token after each prompt: [n, vocab], float32, on the CPU."""
        if not prompts:
            return torch.empty(0, self.vocab_size)
        ids = self.encoder.prompts(prompts)
        for row, prompt in zip(ids, prompts, strict=True):
            self.room(row, prompt, 1)
        found: dict[int, Tensor] = {}

        def work(batch: Sequence[int]) -> None:
            rows = [ids[i] for i in batch]
            kept = tail_logits(self.model, rows, [len(row) - 1 for row in rows], self.pad)
            for i, logits in zip(batch, kept, strict=True):
                found[i] = logits[-1].float().log_softmax(-1).cpu()

        lengths = [len(row) for row in ids]
        batches = self.batcher.split(lengths, [n - 1 for n in lengths], self.vocab_size)
        self.run("score", batches, work, len(ids))
        return torch.stack([found[i] for i in range(len(ids))])

    def run(
        self,
        stage: str,
        batches: Iterable[list[int]],
        work: Callable[[Sequence[int]], None],
        total: int,
        batcher: Batcher | None = None,
    ) -> None:
        """work() on every batch of this batcher (the scorer's own), with progress."""
        batcher, done = batcher or self.batcher, 0
        with answering(self.model):
            for batch in batches:
                batcher.run(batch, work)
                done += len(batch)
                self._report(stage, done, total)

    def _report(self, stage: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(stage, done, total)

    def room(self, ids: Sequence[int], prompt: str, wanted: int, more: str = "") -> int:
        """How many tokens may follow, at most `wanted`. Raises TaskError if none.

        more: what the ids hold beside the prompt, for the error.
        """
        if self.context is None:
            return wanted
        # The last token needs no position: nothing follows it.
        left = self.context - len(ids) + 1
        if left < 1:
            raise TaskError(
                f"The prompt {prompt[:60]!r}{more} has {len(ids):,} tokens, but the "
                f"model's context holds {self.context:,}; shorten {'both' if more else 'it'}."
            )
        return min(wanted, left)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out."""
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
