"""Scores continuations so that the model reads a prompt with several of them only once.

The keys and values of a batch of prompts are kept in a cache. A continuation uses the rows of its
prompt, and the model reads only the continuation's own tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loraprobe.composition.forward_pass import rows_of_batch
from loraprobe.scoring.forward import arguments, padded, positions

Ids = tuple[int, ...]
# Prompt -> tail (a continuation without its last token, which is only predicted) -> the indices of
# the continuations with this tail: one row of prompt and tail scores all of them.
Prompts = dict[Ids, dict[Ids, list[int]]]
Keep = Callable[[Sequence[int], Tensor], None]

# Reading prompts separately needs a second pass, so its tokens must be below this share.
WORTH = 0.7


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


def by_prompt(encoded: Sequence[tuple[Sequence[int], int]]) -> Prompts:
    """The indices of encoded pairs by prompt and tail."""
    prompts: Prompts = {}
    for i, (ids, start) in enumerate(encoded):
        tails = prompts.setdefault(tuple(ids[:start]), {})
        tails.setdefault(tuple(ids[start:-1]), []).append(i)
    return prompts


def saves(prompts: Prompts) -> bool:
    """Whether it is cheaper to read prompts separately from their continuations."""
    whole = sum(len(p) + len(tail) for p, tails in prompts.items() for tail in tails)
    apart = sum(len(prompt) + sum(map(len, tails)) for prompt, tails in prompts.items())
    return apart < WORTH * whole


def _read_apart(scorer: Any, prompts: Prompts, keep: Keep) -> None:
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


def can_share(model: Any) -> bool:
    """Whether a model's cache consists of keys and values of every position, which can be shared.

    False for sliding windows, recurrent layers, and models without position_ids as an argument;
    their prompts are read again with each continuation.
    """
    if not _cache_argument(model) or not {"position_ids", "attention_mask"} <= arguments(model):
        return False
    if getattr(model, "_is_stateful", False):
        return False
    return all(type(layer).__name__ == "DynamicLayer" for layer in _empty_cache(model).layers)


@dataclass(frozen=True, eq=False)
class Prefix:
    """The cache of c prompts. logits: [c, vocab], those after each prompt."""

    model: Any
    cache: Any
    mask: Tensor
    logits: Tensor

    @classmethod
    def read(cls, model: Any, prompts: Sequence[Sequence[int]], pad: int) -> Prefix:
        """Reads the prompts in one forward pass, padded on the left."""
        ids, mask = padded(prompts, pad, "left", model.device)
        cache = _empty_cache(model)
        last: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in arguments(model) else {}
        logits = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions(mask),
            use_cache=True,
            **{_cache_argument(model): cache},
            **last,
        ).logits
        return cls(model, cache, mask, logits[:, -1])

    def tails(
        self, prompts: Sequence[int], tails: Sequence[Sequence[int]], pad: int
    ) -> list[Tensor]:
        """Logits at each token of tail i, which follows prompt prompts[i]: [len(tail), vocab]."""
        ids, own = padded(tails, pad, "right", self.model.device)
        rows = torch.tensor(prompts, device=ids.device)
        cache = copy.copy(self.cache)  # selecting rows replaces tensors of layers
        cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        cache.batch_select_indices(rows)
        mask = torch.cat([self.mask[rows], own], dim=1)
        with rows_of_batch(follows=prompts):
            logits = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions(mask)[:, -ids.shape[1] :],
                use_cache=True,
                **{_cache_argument(self.model): cache},
            ).logits
        return [logits[i, : len(tail)] for i, tail in enumerate(tails)]


def _empty_cache(model: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=model.config)


def _cache_argument(model: Any) -> str:
    """The cache argument of forward(): `cache` in newer transformers, `past_key_values`, or ""."""
    known = arguments(model)
    return next((name for name in ("cache", "past_key_values") if name in known), "")
