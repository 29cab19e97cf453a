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
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Pair = tuple[str, str]  # a prompt and its continuation
LEAST = -1e3  # log-probabilities are clamped here; float16 holds their sums over 60 adapters
MOST_BYTES = 1 << 30  # of all sums


class Recorder:
    """Adds up log-probabilities for the composition of all adapters, each at a gate of 1.

    base: the name of the system without an adapter.
    """

    def __init__(self, base: str, adapters: Sequence[str]) -> None:
        self.weights = {base: 1.0 - len(adapters), **dict.fromkeys(adapters, 1.0)}
        self._system = ""
        self._taken: dict[Pair, set[str]] = {}
        self._sums: dict[Pair, Tensor] = {}

    @contextlib.contextmanager
    def of(self, system: str) -> Iterator[None]:
        """What is scored within the context belongs to this system."""
        self._system = system
        try:
            yield
        finally:
            self._system = ""

    def take(self, pair: Pair, logits: Tensor) -> None:
        """Adds the logits [tokens, vocab] that predict a continuation; each pair counts once."""
        system, taken = self._system, self._taken.setdefault(pair, set())
        if system not in self.weights or system in taken:
            return  # a batch that did not fit into memory is computed again
        taken.add(system)
        new = self.weights[system] * logits.float().log_softmax(-1).clamp_min(LEAST).cpu()
        before = self._sums.get(pair)
        self._sums[pair] = (new if before is None else before.float() + new).to(torch.float16)

    def logprob(self, pair: Pair, gold: Sequence[int]) -> float | None:
        """The log-probability of a continuation; None unless all systems scored it.

        gold: the continuation's token ids.
        """
        if self._taken.get(pair) != self.weights.keys():
            return None
        ids = torch.tensor(gold)[:, None]
        return float(self._sums[pair].float().log_softmax(-1).gather(-1, ids).sum())
