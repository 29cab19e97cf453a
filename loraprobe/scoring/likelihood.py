"""Log-likelihoods of continuations, with statistics of each position for probes.

The model reads a prompt with several continuations only once: the keys and values of a batch of
prompts are kept in a cache, a continuation uses the rows of its prompt, and the model reads only
the continuation's own tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from loraprobe.errors import BaseError
from loraprobe.scoring.forward import Prefix, can_share, shared_tokens

Ids = tuple[int, ...]
# Prompt -> tail (a continuation without its last token, which is only predicted) -> the indices of
# the continuations with this tail: one row of prompt and tail scores all of them.
PromptTree = dict[Ids, dict[Ids, list[int]]]
Keep = Callable[[Sequence[int], Tensor], None]

# Reading prompts separately needs a second pass, so its tokens must be below this share.
WORTH = 0.7
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
    """The likelihood of the tokens gold [p] under logits [p, vocab], in chunks of CHUNK entries.

    Raises BaseError for logits that are no numbers.
    """
    step = max(1, CHUNK // logits.shape[-1])
    parts = [
        _statistics(logits[i : i + step], gold[i : i + step])
        for i in range(0, logits.shape[0], step)
    ]
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    if not columns[0].isfinite().all():
        raise BaseError(
            "The model gives a log-probability that is no number; take --dtype float32, or leave "
            "out the adapter whose weights are so large."
        )
    return Likelihood(*(tuple(column.tolist()) for column in columns))


def _statistics(logits: Tensor, gold: Tensor) -> tuple[Tensor, ...]:
    # Clamped, so that a token with log-probability -inf adds 0 and not NaN to the moments.
    logp = logits.float().log_softmax(-1).clamp_min_(-1e4)
    p = logp.exp()
    mean = (p * logp).sum(-1)
    std = (p * (logp - mean[:, None]).square()).sum(-1).sqrt()
    chosen = logp.gather(-1, gold[:, None])
    rank = (logp > chosen).sum(-1) + 1
    return chosen[:, 0], logp.amax(-1), mean, std, rank


def score_continuations(
    scorer: Any, encoded: Sequence[tuple[Sequence[int], int]], keep: Keep
) -> None:
    """Reads all pairs; keep(indices of pairs, logits) gets the logits that some have in common.

    encoded: pairs (ids, index of the continuation's first token). logits: [length of the
    continuation, vocab], those that predict its tokens.
    """
    prompts = by_prompt(encoded)
    if saves(prompts) and can_share(scorer.model):
        _read_apart(scorer, prompts, keep)
        return
    rows = [(p, tail, found) for p, tails in prompts.items() for tail, found in tails.items()]
    ids, starts = [p + tail for p, tail, _ in rows], [len(p) - 1 for p, _, _ in rows]
    scorer.read(ids, starts, lambda row, logits: keep(rows[row][2], logits))


def by_prompt(encoded: Sequence[tuple[Sequence[int], int]]) -> PromptTree:
    """The indices of encoded pairs by prompt and tail."""
    prompts: PromptTree = {}
    for i, (ids, start) in enumerate(encoded):
        tails = prompts.setdefault(tuple(ids[:start]), {})
        tails.setdefault(tuple(ids[start:-1]), []).append(i)
    return prompts


def saves(prompts: PromptTree) -> bool:
    """Whether it is cheaper to read prompts separately from their continuations.

    What all prompts begin with is then read once.
    """
    whole = sum(len(p) + len(tail) for p, tails in prompts.items() for tail in tails)
    shared = shared_tokens(list(prompts)) if prompts else 0
    apart = sum(len(p) - shared + sum(map(len, tails)) for p, tails in prompts.items())
    return apart < WORTH * whole


def _read_apart(scorer: Any, prompts: PromptTree, keep: Keep) -> None:
    """Reads each prompt once, then its tails."""
    texts, batcher, pad = list(prompts), scorer.batcher, scorer.pad

    def work(batch: Sequence[int]) -> None:
        prefix = Prefix.read(scorer.model, [texts[p] for p in batch], pad)
        rows = []
        for place, p in enumerate(batch):
            for tail, found in prompts[texts[p]].items():
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
        for chosen in batcher.split(lengths, [width] * len(rows), scorer.vocab_size):
            batcher.run(chosen, follow)

    scorer.run(batcher.split([len(text) for text in texts]), work)
