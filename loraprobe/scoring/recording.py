"""Sums of log-probabilities over systems that are asked one after the other.

While the base and the single adapters score the continuations of a task, `Recorder` adds up their
log-probabilities at every scored position: those of n adapters, less n - 1 times those of the base.
A softmax of the sum then scores each continuation as if the adapters' effects were added, without a
further pass. Sums of logits and of log-probabilities differ by a constant at each position, which
the softmax removes. Sums are kept in float16: on the demo's base the score of a continuation is
right to 0.02. Only gates of 1 can be summed: an adapter's effect at half its gate is not half its
effect.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

Pair = tuple[str, str]  # a prompt and its continuation
LEAST = -1e3  # log-probabilities are clamped here; float16 holds their sums over 60 adapters
MOST_BYTES = 1 << 30


class Recorder:
    """Adds up log-probabilities for compositions of adapters at a gate of 1.

    base: the name of the system without an adapter. adapters: composition -> its adapters.
    """

    def __init__(self, base: str, adapters: Mapping[str, Sequence[str]]) -> None:
        self.weights = {
            name: {base: 1.0 - len(own), **dict.fromkeys(own, 1.0)}
            for name, own in adapters.items()
        }
        self.systems = {system for own in self.weights.values() for system in own}
        self._system: str | None = None
        self._taken: dict[Pair, set[str]] = {}
        self._sums: dict[Pair, Tensor] = {}

    def bytes(self, tokens: int, vocabulary: int) -> int:
        """The memory that so many scored tokens take."""
        return tokens * vocabulary * len(self.weights) * torch.float16.itemsize

    @contextlib.contextmanager
    def of(self, system: str) -> Iterator[None]:
        """What is scored within the context belongs to this system."""
        self._system = system
        try:
            yield
        finally:
            self._system = None

    def take(self, pair: Pair, logits: Tensor) -> None:
        """Adds the logits [tokens, vocab] that predict a continuation; each pair counts once."""
        system, taken = self._system, self._taken.setdefault(pair, set())
        if system not in self.systems or system in taken:
            return  # a batch that did not fit into memory is computed again
        taken.add(system)
        logprobs = logits.float().log_softmax(-1).clamp_min(LEAST)
        columns = [own.get(system, 0.0) * logprobs for own in self.weights.values()]
        new = torch.stack(columns).cpu()
        before = self._sums.get(pair)
        self._sums[pair] = (new if before is None else before.float() + new).to(torch.float16)

    def logprobs(self, pair: Pair, gold: Sequence[int]) -> dict[str, float] | None:
        """Composition -> log-probability of a continuation; None unless all systems scored it.

        gold: the continuation's token ids.
        """
        if self._taken.get(pair) != self.systems:
            return None
        ids = torch.tensor(gold)[None, :, None].expand(len(self.weights), -1, 1)
        scores = self._sums[pair].float().log_softmax(-1).gather(-1, ids).sum((1, 2))
        return dict(zip(self.weights, scores.tolist(), strict=True))
