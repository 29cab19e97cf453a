"""Training texts as tensors: tokenised with the loss on the completion only, padded, shuffled."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

IGNORED = -100  # label that torch's cross entropy leaves out

Row = tuple[list[int], list[int]]  # token ids of an example, and their labels


@dataclass(frozen=True)
class Example:
    """One training text: the loss is taken on `completion` and on the EOS that follows it.

    `completion` carries its own leading space where the tokenizer needs one (``" Paris"``).
    An empty `prompt` trains on the whole text.
    """

    prompt: str
    completion: str
    end: bool = True  # whether EOS follows the completion


@dataclass(frozen=True)
class Batch:
    """`input_ids`, `attention_mask`, `labels`: [batch, length] int64; labels hold IGNORED."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor

    def inputs(self, model: torch.nn.Module) -> dict[str, Any]:
        """What the model's forward takes, without labels, on the model's device."""
        device = next(model.parameters()).device
        ids, mask = self.input_ids.to(device), self.attention_mask.to(device)
        return {"input_ids": ids, "attention_mask": mask, "use_cache": False}


def encode(tokenizer: Any, example: Example) -> Row:
    """Token ids of an example and their labels, prompt masked out.

    Prompt and completion are tokenised apart, as they are when a model generates.
    """
    prompt = tokenizer(example.prompt)["input_ids"]
    completion = tokenizer(example.completion, add_special_tokens=False)["input_ids"]
    if example.end:
        completion = [*completion, tokenizer.eos_token_id]
    return [*prompt, *completion], [IGNORED] * len(prompt) + list(completion)


def collate(rows: Sequence[Row], pad: int) -> Batch:
    """Right-padded tensors of encoded examples."""

    def padded(values: Sequence[Sequence[int]], fill: int) -> torch.Tensor:
        tensors = [torch.tensor(row) for row in values]
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=fill)

    ids, labels = [ids for ids, _ in rows], [labels for _, labels in rows]
    mask = padded([[1] * len(row) for row in ids], 0)
    return Batch(padded(ids, pad), mask, padded(labels, IGNORED))


def loss_at_labels(model: Any, wrapped: Any, batch: Batch) -> torch.Tensor:
    """Mean cross entropy of the labelled tokens, as the model's own loss gives it.

    The head sees only the positions before a label. `model` is the causal model inside `wrapped`.
    """
    inputs = batch.inputs(wrapped)
    targets = batch.labels[:, 1:].to(inputs["input_ids"].device)
    where = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    where[:, :-1] = targets != IGNORED

    def pick(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0][where], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        logits = wrapped(**inputs).logits
    finally:
        handle.remove()
    return torch.nn.functional.cross_entropy(logits.float(), targets[targets != IGNORED])


class EpochSampler:
    """Draws examples without replacement, reshuffling when all were seen."""

    def __init__(self, size: int, seed: int) -> None:
        if size < 1:
            raise ValueError("there is nothing to train on: the list of examples is empty")
        self._size, self._random = size, random.Random(seed)
        self._queue: list[int] = []

    def draw(self, count: int) -> list[int]:
        while len(self._queue) < count:
            order = list(range(self._size))
            self._random.shuffle(order)
            self._queue.extend(order)
        taken, self._queue = self._queue[:count], self._queue[count:]
        return taken


class LengthSampler:
    """Draws batches of examples of similar length, so that there is little padding.

    Examples come without replacement as from `EpochSampler`; of each `span` batches the examples
    are sorted by length, and the batches are used in random order.
    """

    def __init__(self, lengths: Sequence[int], seed: int, span: int = 4) -> None:
        self._lengths, self._span = lengths, span
        self._examples, self._random = EpochSampler(len(lengths), seed), random.Random(seed)
        self._ready: list[list[int]] = []

    def draw(self, count: int) -> list[int]:
        """The next batch; `count` has to be the same in every call."""
        if not self._ready:
            picks = self._examples.draw(count * self._span)
            picks.sort(key=lambda i: self._lengths[i])
            self._ready = [picks[i : i + count] for i in range(0, len(picks), count)]
            self._random.shuffle(self._ready)
        return self._ready.pop()
