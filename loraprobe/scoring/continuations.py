"""Scores continuations so that the model reads shared prompts only once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from loraprobe.scoring.batching import Batcher
from loraprobe.scoring.forward import tail_logits
from loraprobe.scoring.prefix import Prefix, can_share

Ids = tuple[int, ...]
Keep = Callable[[Sequence[int], Tensor], None]
Step = tuple[list[int], Callable[[Sequence[int]], None]]  # a batch, and what to do with it

# Reading prompts separately needs a second pass, so its tokens must be below this share.
WORTH = 0.7


class Continuations:
    """Encoded pairs (ids, index of the continuation's first token), grouped by their prompts.

    A continuation's last token is only predicted. One row of a prompt and a `tail` (the
    continuation without its last token) therefore scores all continuations with this tail.
    """

    def __init__(self, encoded: Sequence[tuple[Sequence[int], int]]) -> None:
        self.prompts: dict[Ids, dict[Ids, list[int]]] = {}
        for i, (ids, start) in enumerate(encoded):
            tails = self.prompts.setdefault(tuple(ids[:start]), {})
            tails.setdefault(tuple(ids[start:-1]), []).append(i)

    def read(
        self, model: Any, batcher: Batcher, pad: int, vocab: int, keep: Keep
    ) -> Iterator[Step]:
        """Batches of work, which together call keep(indices of pairs, logits) for every pair.

        logits: [length of the continuation, vocab], the logits that predict its tokens.
        """
        if self.saves() and can_share(model):
            return self._apart(model, batcher, pad, vocab, keep)
        return self._whole(model, batcher, pad, vocab, keep)

    def saves(self) -> bool:
        """Whether it is cheaper to read prompts separately from their continuations."""
        whole = sum(
            len(prompt) + len(tail) for prompt, tails in self.prompts.items() for tail in tails
        )
        apart = sum(len(prompt) + sum(map(len, tails)) for prompt, tails in self.prompts.items())
        return apart < WORTH * whole

    def _whole(
        self, model: Any, batcher: Batcher, pad: int, vocab: int, keep: Keep
    ) -> Iterator[Step]:
        """Reads every prompt with every tail as one row."""
        rows = [
            (p, tail, found) for p, tails in self.prompts.items() for tail, found in tails.items()
        ]
        starts = [len(prompt) - 1 for prompt, _, _ in rows]

        def work(batch: Sequence[int]) -> None:
            ids = [rows[r][0] + rows[r][1] for r in batch]
            kept = tail_logits(model, ids, [starts[r] for r in batch], pad)
            for r, logits in zip(batch, kept, strict=True):
                keep(rows[r][2], logits)

        lengths = [len(prompt) + len(tail) for prompt, tail, _ in rows]
        for batch in batcher.split(lengths, starts, vocab):
            yield batch, work

    def _apart(
        self, model: Any, batcher: Batcher, pad: int, vocab: int, keep: Keep
    ) -> Iterator[Step]:
        """Reads each prompt once, then its tails."""
        prompts = list(self.prompts)

        def work(batch: Sequence[int]) -> None:
            prefix = Prefix.read(model, [prompts[p] for p in batch], pad)
            rows = []
            for place, p in enumerate(batch):
                for tail, found in self.prompts[prompts[p]].items():
                    if tail:
                        rows.append((place, tail, found))
                    else:
                        keep(found, prefix.logits[place : place + 1])

            def follow(chosen: Sequence[int]) -> None:
                places, tails = [rows[r][0] for r in chosen], [rows[r][1] for r in chosen]
                for r, logits in zip(chosen, prefix.tails(places, tails, pad), strict=True):
                    place, _, found = rows[r]
                    keep(found, torch.cat([prefix.logits[place : place + 1], logits]))

            width = prefix.mask.shape[1]
            lengths = [width + len(tail) for _, tail, _ in rows]
            for chosen in batcher.split(lengths, [width] * len(rows), vocab):
                batcher.run(chosen, follow)

        for batch in batcher.split([len(prompt) for prompt in prompts]):
            yield batch, work
