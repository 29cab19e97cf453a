"""Scorer: generates and scores texts with one loaded model, under many compositions."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from loraprobe.composition import Composition
from loraprobe.errors import UsageError
from loraprobe.records import Progress
from loraprobe.scoring.batching import Batcher
from loraprobe.scoring.continuations import score_continuations
from loraprobe.scoring.encoding import Encoder, tokens_left
from loraprobe.scoring.forward import answering, seeded, tail_logits
from loraprobe.scoring.generation import (
    NewlineTokens,
    Written,
    decoded,
    first_line,
    generate_batch,
    stop_ids,
)
from loraprobe.scoring.likelihood import Likelihood, likelihood
from loraprobe.scoring.recording import Recorder

SAMPLED = 16  # texts drawn at once
NEW_TOKENS = 32  # of a text, where the caller sets no limit
DRAWN = {"do_sample": True, "temperature": 1.0, "top_k": 0}  # transformers' own top_k is 50


class Scorer:
    """Generations and log-likelihoods of one model.

    model, tokenizer: a transformers causal model and its tokenizer. A model in training mode is in
    evaluation mode only while it answers. batch_size: sequences per batch, or "auto".
    chat_template: whether prompts become user turns. progress: what `read_texts` reports to.

    Raises UsageError for an encoder-decoder or a missing chat template.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_size: int | Literal["auto"] = "auto",
        chat_template: bool = False,
        progress: Progress | None = None,
    ) -> None:
        if getattr(model.config, "is_encoder_decoder", False):
            raise UsageError(
                f"{type(model).__name__} is an encoder-decoder; loraprobe evaluates "
                "causal models only."
            )
        self.model, self.tokenizer = model, tokenizer
        self.progress = progress
        self.recorder: Recorder | None = None  # takes the logits of scored continuations
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.context = int(longest) if longest and longest > 0 else None
        self.encoder = Encoder(tokenizer, chat_template, self.vocab_size)
        self.batcher = Batcher(model.device, None if batch_size == "auto" else batch_size)
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

    def with_template(self, chat_template: bool) -> Scorer:
        """A scorer of the same model with or without its chat template."""
        if chat_template == self.chat_template:
            return self
        other = copy.copy(self)
        other.encoder = replace(self.encoder, chat=chat_template)
        return other

    @contextlib.contextmanager
    def with_composition(self, composition: Composition | None) -> Iterator[Scorer]:
        """This scorer, with a composition in its model while the context lasts; None: the base."""
        with composition.into(self.model) if composition is not None else contextlib.nullcontext():
            yield self

    def generate(self, prompts: Sequence[str], **options: Any) -> list[str]:
        """The texts of `write_all`, with its options."""
        return [written.text for written in self.write_all(prompts, **options)]

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
        its lines so far. It contains no special tokens. Repeated prompts are computed once. Raises
        UsageError for a limit below 1, TaskError, which quotes the prompt, for a prompt that the
        context cannot hold.
        """
        if max_new_tokens < 1:
            raise UsageError(f"max_new_tokens must be at least 1, not {max_new_tokens}.")
        unique = list(dict.fromkeys(prompts))
        ids = self.encoder.prompts(unique)
        room = [
            tokens_left(self.context, row, prompt, max_new_tokens)
            for row, prompt in zip(ids, unique, strict=True)
        ]
        found: dict[str, Written] = {}

        def work(batch: Sequence[int]) -> None:
            rows, most = [ids[i] for i in batch], room[batch[0]]
            results = self.write(rows, most, until_newline, until)
            found.update((unique[i], made) for i, made in zip(batch, results, strict=True))

        # All rows of a batch have one limit, so prompts near the context's end get their own batch.
        batches = (
            [group[i] for i in batch]
            for size in sorted(set(room), reverse=True)
            for group in ([i for i in range(len(unique)) if room[i] == size],)
            for batch in self.batcher.split([len(ids[i]) + size for i in group])
        )
        self.run(batches, work)
        return [found[prompt] for prompt in prompts]

    def write(
        self,
        rows: Sequence[Sequence[int]],
        max_new_tokens: int,
        until_newline: bool = False,
        until: Callable[[str], bool] | None = None,
        **options: Any,
    ) -> list[Written]:
        """The continuation of each row of token ids. options: those of `generate_batch`."""
        new = generate_batch(
            self.model,
            rows,
            pad=self.pad,
            stops=self.stops,
            max_new_tokens=max_new_tokens,
            stopper=self.newlines.stopper(until) if until_newline or until else None,
            **options,
        )
        texts = [(self.decode(tokens), cut) for tokens, cut in new]
        return [Written(first_line(t) if until_newline else t, cut) for t, cut in texts]

    def sample(
        self,
        n: int,
        *,
        seed: int = 0,
        max_new_tokens: int = NEW_TOKENS,
    ) -> list[str]:
        """n texts that the model samples in place of a user's turn.

        They start from BOS, or with a chat template from an empty user turn. The state of torch's
        global generator does not change.
        """
        row = self.encoder.opening()
        most = tokens_left(self.context, row, "", max_new_tokens)
        found: list[str] = []

        def work(batch: Sequence[int]) -> None:
            found.extend(one.text for one in self.write([row] * len(batch), most, options=DRAWN))

        # The draws depend on the size of a batch, so --batch-size has no effect.
        batches = ([*range(start, min(start + SAMPLED, n))] for start in range(0, n, SAMPLED))
        with seeded(seed, self.model.device):
            self.run(batches, work)
        return found

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """The Likelihood of each (prompt, continuation), in the given order.

        `Encoder.pairs` defines how they are joined. A prompt with several continuations is read
        once if the model's cache allows it. Raises TaskError for an empty continuation or one that
        the context cannot hold.
        """
        unique = list(dict.fromkeys(pairs))
        found = dict(zip(unique, self.score_tokens(self.encoded(unique), unique), strict=True))
        return [found[pair] for pair in pairs]

    def score_tokens(
        self, encoded: Sequence[tuple[Sequence[int], int]], pairs: Sequence[tuple[str, str]] = ()
    ) -> list[Likelihood]:
        """The Likelihood of ids[start:] after ids[:start] for each (ids, start), start > 0.

        pairs: the texts, as the recorder names them; without them nothing is recorded.
        """
        found: dict[int, Likelihood] = {}

        def keep(indices: Sequence[int], logits: Tensor) -> None:
            for i in indices:
                ids, start = encoded[i]
                gold = torch.tensor(ids[start:], device=logits.device)
                found[i] = likelihood(logits, gold)
                if self.recorder is not None and pairs:
                    self.recorder.take(pairs[i], logits)

        score_continuations(self, encoded, keep)
        return [found[i] for i in range(len(encoded))]

    def encoded(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[list[int], int]]:
        """`Encoder.pairs`. Raises TaskError for a pair that the context cannot hold."""
        encoded = self.encoder.pairs(pairs)
        for (ids, _), (prompt, _) in zip(encoded, pairs, strict=True):
            tokens_left(self.context, ids[:-1], prompt, 1, " with its answer")
        return encoded

    def encoded_prompts(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt. Raises TaskError for one that the context cannot hold."""
        ids = self.encoder.prompts(prompts)
        for row, prompt in zip(ids, prompts, strict=True):
            tokens_left(self.context, row, prompt, 1)
        return ids

    def first_token_distribution(self, prompts: Sequence[str]) -> Tensor:
        """Log-probabilities of the token after each prompt: [n, vocab], float32, on the CPU."""
        if not prompts:
            return torch.empty(0, self.vocab_size)
        ids = self.encoded_prompts(prompts)
        found: dict[int, Tensor] = {}

        def keep(row: int, logits: Tensor) -> None:
            found[row] = logits[-1].float().log_softmax(-1).cpu()

        self.read(ids, [len(row) - 1 for row in ids], keep)
        return torch.stack([found[i] for i in range(len(ids))])

    def read(
        self,
        rows: Sequence[Sequence[int]],
        starts: Sequence[int],
        keep: Callable[[int, Tensor], None],
    ) -> None:
        """Calls keep(i, logits) for all rows of token ids.

        logits: [len(row) - start, vocab], those from position `start` on.
        """

        def work(batch: Sequence[int]) -> None:
            chosen, first = [rows[i] for i in batch], [starts[i] for i in batch]
            kept = tail_logits(self.model, chosen, first, self.pad)
            for i, logits in zip(batch, kept, strict=True):
                keep(i, logits)

        self.run(self.batcher.split([len(row) for row in rows], starts, self.vocab_size), work)

    def run(
        self,
        batches: Iterable[list[int]],
        work: Callable[[Sequence[int]], None],
        batcher: Batcher | None = None,
    ) -> None:
        """Runs work on every batch. batcher: None for the scorer's own."""
        with answering(self.model):
            for batch in batches:
                (batcher or self.batcher).run(batch, work)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids without special tokens."""
        return decoded(self.tokenizer, ids)
