"""Log-likelihoods of continuations, with what a probe may want to know of each position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1 << 24  # entries of the full vocabulary looked at together, 64 MB in float32


@dataclass(frozen=True)
class Likelihood:
    """How likely a model finds a continuation of `tokens` tokens and `characters` characters.

    `logprob` is the sum of `token_logprobs` (natural logarithms). At each position
    `top_logprobs` is that of the model's first choice, `rank` the gold token's place (1 is first
    choice; ties count in its favour), and `mean` and `std` are those of log p(z) for z drawn from
    the model's own distribution (the mu and sigma of Min-K%++, arXiv 2404.02936). `greedy`: every
    token is a first choice.
    """

    logprob: float
    tokens: int
    characters: int
    token_logprobs: tuple[float, ...]
    top_logprobs: tuple[float, ...]
    greedy: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rank: tuple[int, ...]

    @property
    def per_token(self) -> float:
        """Mean log-probability of a token."""
        return self.logprob / self.tokens

    @property
    def per_character(self) -> float:
        """Log-probability over characters: comparable between tokenizations."""
        return self.logprob / self.characters


@dataclass(frozen=True, eq=False)
class TokenStatistics:
    """Per position, float32 on the CPU: [p] each (rank: int64)."""

    logprob: Tensor
    top: Tensor
    mean: Tensor
    std: Tensor
    rank: Tensor

    def likelihood(self, characters: int) -> Likelihood:
        """The record of the continuation at these positions."""
        logprobs = tuple(self.logprob.tolist())
        rank = tuple(self.rank.tolist())
        return Likelihood(
            logprob=sum(logprobs),
            tokens=len(logprobs),
            characters=characters,
            token_logprobs=logprobs,
            top_logprobs=tuple(self.top.tolist()),
            greedy=all(r == 1 for r in rank),
            mean=tuple(self.mean.tolist()),
            std=tuple(self.std.tolist()),
            rank=rank,
        )


def token_statistics(logits: Tensor, gold: Tensor) -> TokenStatistics:
    """logits: [p, vocab], gold: [p] token ids. Works through the positions in chunks of CHUNK."""
    step = max(1, CHUNK // logits.shape[-1])
    parts: Sequence[tuple[Tensor, ...]] = [
        _statistics(logits[i : i + step], gold[i : i + step])
        for i in range(0, logits.shape[0], step)
    ]
    return TokenStatistics(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


def _statistics(logits: Tensor, gold: Tensor) -> tuple[Tensor, ...]:
    # Clamped, so that a token the model rules out (-inf) adds 0 and not NaN to the moments.
    logp = logits.float().log_softmax(-1).clamp_min_(-1e4)
    p = logp.exp()
    mean = (p * logp).sum(-1)
    std = (p * (logp - mean[:, None]).square()).sum(-1).sqrt()
    chosen = logp.gather(-1, gold[:, None])
    rank = (logp > chosen).sum(-1) + 1
    return chosen[:, 0], logp.amax(-1), mean, std, rank
