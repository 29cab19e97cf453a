"""Log-likelihoods of continuations, with statistics of each position for probes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

CHUNK = 1 << 24  # logits that are processed together, 64 MB in float32


@dataclass(frozen=True)
class Likelihood:
    """The log-likelihood of a continuation, by position (natural logarithms).

    token_logprobs: of the gold token. top_logprobs: of the model's first choice. mean and std of
    log p(z) for z from the model's distribution (mu and sigma of Min-K%++, arXiv 2404.02936). rank:
    of the gold token; 1 is the first choice, ties count in its favour.
    """

    token_logprobs: tuple[float, ...]
    top_logprobs: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rank: tuple[int, ...]

    @cached_property
    def logprob(self) -> float:
        return sum(self.token_logprobs)

    @property
    def tokens(self) -> int:
        return len(self.token_logprobs)

    @property
    def per_token(self) -> float:
        """Mean log-probability of a token."""
        return self.logprob / self.tokens


def likelihood(logits: Tensor, gold: Tensor) -> Likelihood:
    """The likelihood of the tokens gold [p] under logits [p, vocab], in chunks of CHUNK entries."""
    step = max(1, CHUNK // logits.shape[-1])
    parts = [
        _statistics(logits[i : i + step], gold[i : i + step])
        for i in range(0, logits.shape[0], step)
    ]
    return Likelihood(*(tuple(torch.cat(column).tolist()) for column in zip(*parts, strict=True)))


def _statistics(logits: Tensor, gold: Tensor) -> tuple[Tensor, ...]:
    # Clamped, so that a token with log-probability -inf adds 0 and not NaN to the moments.
    logp = logits.float().log_softmax(-1).clamp_min_(-1e4)
    p = logp.exp()
    mean = (p * logp).sum(-1)
    std = (p * (logp - mean[:, None]).square()).sum(-1).sqrt()
    chosen = logp.gather(-1, gold[:, None])
    rank = (logp > chosen).sum(-1) + 1
    return chosen[:, 0], logp.amax(-1), mean, std, rank
