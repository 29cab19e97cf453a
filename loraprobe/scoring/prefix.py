"""Reads prompts once and then several continuations of each, as for multiple choice.

The keys and values of a batch of prompts are kept in a cache. A continuation uses the rows of its
prompt, and the model reads only the continuation's own tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loraprobe.composition.forward_pass import rows_of_batch
from loraprobe.scoring.forward import arguments, padded, positions


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
        ids, mask = (tensor.to(model.device) for tensor in padded(prompts, pad, "left"))
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
        ids, own = (tensor.to(self.model.device) for tensor in padded(tails, pad, "right"))
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
