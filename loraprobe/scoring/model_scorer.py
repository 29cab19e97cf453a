"""ModelScorer: generates and scores texts with one loaded model, under many compositions."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from loraprobe.composition import Composition
from loraprobe.errors import UsageError
from loraprobe.records import Progress
from loraprobe.scoring.encoding import Encoder, tokens_left
from loraprobe.scoring.forward import (
    Batcher,
    cache_bytes,
    differentiable,
    forward_arguments,
    inference_mode,
    padded,
    seeded,
    tail_logits,
)
from loraprobe.scoring.generation import Written, first_line, generate_batch, line_ended, stop_ids
from loraprobe.scoring.likelihood import Likelihood, likelihood, score_continuations
from loraprobe.scoring.scorer import NEW_TOKENS, Scorer

SAMPLED = 16  # texts drawn at once
CACHE_BYTES = 1 << 30  # of keys and values, where more tokens than are read at once fit into them
DRAWN = {"do_sample": True, "temperature": 1.0, "top_k": 0}  # transformers' own top_k is 50


class ModelScorer(Scorer):
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
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.vocab_size = int(model.config.get_text_config().vocab_size)
        self.context = int(longest) if longest and longest > 0 else None
        self.encoder = Encoder(tokenizer, chat_template, self.vocab_size)
        self.batcher = Batcher(model.device, None if batch_size == "auto" else batch_size)
        self.stops = stop_ids(model, tokenizer)
        fill = (*self.stops, tokenizer.pad_token_id)  # masked, but looked up in the embedding
        self.pad = next((i for i in fill if i is not None and i < self.vocab_size), 0)
        self.kept_tokens = CACHE_BYTES // (cache_bytes(model) or CACHE_BYTES)

    @contextlib.contextmanager
    def with_composition(self, composition: Composition | None) -> Iterator[ModelScorer]:
        """This scorer, with a composition in its model while the context lasts; None: the base."""
        with composition.into(self.model) if composition is not None else contextlib.nullcontext():
            yield self

    def note(self) -> str:
        return self.batcher.note()

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
        rooms = self.rooms(prompts, max_new_tokens)
        unique, ids = list(rooms), [row for row, _ in rooms.values()]
        room = [most for _, most in rooms.values()]
        written: dict[str, Written] = {}

        def work(batch: Sequence[int]) -> None:
            rows, most = [ids[i] for i in batch], room[batch[0]]
            results = self.write(rows, most, until_newline, until)
            written.update((unique[i], made) for i, made in zip(batch, results, strict=True))

        # All rows of a batch have one limit, so prompts near the context's end get their own batch.
        for size in sorted(set(room), reverse=True):
            group = [i for i in range(len(unique)) if room[i] == size]
            lengths = [len(ids[i]) for i in group]
            batches = self.batcher.split(lengths, new=size, kept=self.kept_tokens)
            self.run(([group[k] for k in batch] for batch in batches), work)
        return [written[prompt] for prompt in prompts]

    def write(
        self,
        rows: Sequence[Sequence[int]],
        max_new_tokens: int,
        until_newline: bool = False,
        until: Callable[[str], bool] | None = None,
        **options: Any,
    ) -> list[Written]:
        """The continuation of each row of token ids. options: those of `generate_batch`."""
        if until_newline or until:
            options["ended"] = line_ended(self.tokenizer, until)
        new = generate_batch(
            self.model,
            rows,
            pad=self.pad,
            stops=self.stops,
            max_new_tokens=max_new_tokens,
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
        texts: list[str] = []

        def work(batch: Sequence[int]) -> None:
            texts.extend(one.text for one in self.write([row] * len(batch), most, options=DRAWN))

        # The draws depend on the size of a batch, so --batch-size has no effect.
        batches = ([*range(start, min(start + SAMPLED, n))] for start in range(0, n, SAMPLED))
        with seeded(seed, self.model.device):
            self.run(batches, work)
        return texts

    def loglikelihood(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """`Scorer.loglikelihood`. A prompt with several continuations is read once if the model's
        cache allows it.
        """
        unique = list(dict.fromkeys(pairs))
        likelihoods = dict(zip(unique, self.score_tokens(self.encoded(unique)), strict=True))
        return [likelihoods[pair] for pair in pairs]

    def score_tokens(self, encoded: Sequence[tuple[Sequence[int], int]]) -> list[Likelihood]:
        """The Likelihood of ids[start:] after ids[:start] for each (ids, start), start > 0."""
        likelihoods: dict[int, Likelihood] = {}

        def keep(indices: Sequence[int], logits: Tensor) -> None:
            for i in indices:
                ids, start = encoded[i]
                gold = torch.tensor(ids[start:], device=logits.device)
                likelihoods[i] = likelihood(logits, gold)

        score_continuations(self, encoded, keep)
        return [likelihoods[i] for i in range(len(encoded))]

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
        logprobs: dict[int, Tensor] = {}

        def keep(row: int, logits: Tensor) -> None:
            logprobs[row] = logits[-1].float().log_softmax(-1).cpu()

        self.read(ids, [len(row) - 1 for row in ids], keep)
        return torch.stack([logprobs[i] for i in range(len(ids))])

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
            logits_of = tail_logits(self.model, chosen, first, self.pad)
            for i, logits in zip(batch, logits_of, strict=True):
                keep(i, logits)

        self.run(self.batcher.split([len(row) for row in rows], starts, self.vocab_size), work)

    def run(
        self,
        batches: Iterable[list[int]],
        work: Callable[[Sequence[int]], None],
    ) -> None:
        """Runs work on every batch."""
        with inference_mode(self.model):
            for batch in batches:
                self.batcher.run(batch, work)


def read_texts(
    scorer: ModelScorer,
    texts: Sequence[str],
    observe: Callable[[Tensor | None], None],
    *,
    whole: bool = False,
) -> None:
    """Runs the model over distinct texts, in rows that are padded on the right.

    Before each forward pass, observe(mask [b, n]) gets the tokens that count: all but padding.
    After a failed pass, observe(None) is called, and its rows are read again in smaller batches:
    observations of the failed pass must be dropped. whole: the head reads every token; otherwise
    only the last, if the model supports it.
    """
    rows = scorer.encoded_prompts(list(dict.fromkeys(texts)))
    model = scorer.model
    options = (
        {} if whole or "logits_to_keep" not in forward_arguments(model) else {"logits_to_keep": 1}
    )

    done = 0

    def work(batch: Sequence[int]) -> None:
        nonlocal done
        chosen = [rows[i] for i in batch]
        ids, mask = padded(chosen, scorer.pad, "right", model.device)
        observe(mask.bool())
        try:
            model(input_ids=ids, attention_mask=mask, use_cache=False, **options)
        except Exception:
            observe(None)
            raise
        done += len(batch)
        if scorer.progress is not None:
            scorer.progress("read prompts", done, len(rows))

    lengths = [len(row) for row in rows]
    starts, width = ([0] * len(rows), scorer.vocab_size) if whole else (None, 0)
    scorer.run(scorer.batcher.split(lengths, starts, width), work)


def loss_with_gradients(
    scorer: ModelScorer, items: Sequence[Sequence[tuple[str, str]]], shares: Sequence[float]
) -> float:
    """The sum of share * loss over items, and its gradients added to the gates of the composition.

    items: the (prompt, answer) pairs of each; its loss is the smallest of them, in nats a token.
    The scorer's model must carry a composition with gates that require gradients. Raises TaskError
    for a pair that the context cannot hold.
    """
    encoded = [scorer.encoded(pairs) for pairs in items]
    model, total = scorer.model, 0.0

    def work(batch: Sequence[int]) -> None:
        nonlocal total
        rows = [row for i in batch for row in encoded[i]]
        ids, starts = [row[:-1] for row, _ in rows], [start - 1 for _, start in rows]
        logits = iter(tail_logits(model, ids, starts, scorer.pad))
        loss = torch.zeros((), device=model.device)
        for i in batch:
            golds = (torch.tensor(row[start:], device=model.device) for row, start in encoded[i])
            # Clamped, so that a logit of -inf gives a finite loss.
            each = [F.cross_entropy(next(logits).float().clamp_min(-1e4), gold) for gold in golds]
            loss = loss + shares[i] * torch.stack(each).min()
        loss.backward()
        total += loss.item()

    lengths = [sum(len(row) for row, _ in pairs) for pairs in encoded]
    starts = [min(start - 1 for _, start in pairs) for pairs in encoded]
    with differentiable(model):
        for batch in scorer.batcher.split(lengths, starts, scorer.vocab_size):
            scorer.batcher.run(batch, work)
    return total
