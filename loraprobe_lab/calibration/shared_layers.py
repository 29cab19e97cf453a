"""Computes the layers below all adapters once for rows of a batch that hold the same text.

In a forecast the base and each adapter read one text in rows of their own. Below the first adapted
layer these rows do not differ, so one of them is computed, with its keys and values, until the
texts of two rows part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from loraprobe.adapters import Adapter
from loraprobe_lab.training.fast_training import layers_of


@contextlib.contextmanager
def shared_layers(model: Any, adapters: Sequence[Adapter]) -> Iterator[int]:
    """Shares the layers below all adapters while the context lasts; yields their number.

    None are shared if an adapter changes a module outside of the layers, or the model's cache does
    not consist of keys and values of every position.
    """
    from loraprobe.scoring.prefix import can_share

    layers = _below(model, adapters) if can_share(model) else []
    rows = _Rows(len(layers))
    try:
        for index, layer in enumerate(layers):
            layer.forward = partial(rows.call, index, layer.forward)
        yield len(layers)
    finally:
        for layer in layers:
            layer.__dict__.pop("forward", None)


def _below(model: Any, adapters: Sequence[Adapter]) -> list[Any]:
    """The layers before the first that an adapter changes."""
    layers = list(layers_of(model))
    names = {module: name for name, module in model.named_modules()}
    first = len(layers)
    for adapter in adapters:
        for path in (*adapter.modules, *adapter.whole):
            inside = [i for i, one in enumerate(layers) if path.startswith(f"{names[one]}.")]
            first = min(first, *inside) if inside else 0
    return layers[:first]


@dataclass
class _Rows:
    """Rows in groups of one text. group: [rows], the group of each; first: its first row."""

    layers: int
    group: Tensor | None = None
    first: Tensor | None = None

    def call(
        self, index: int, forward: Callable[..., Any], hidden: Tensor, *more: Any, **named: Any
    ) -> Any:
        """The output of a layer, computed for the first row of each group."""
        if index == 0:
            given = (*more, *named.values())
            cache = next((value for value in given if isinstance(value, Cache)), None)
            self._regroup(hidden, named.get("attention_mask"), cache)
            hidden = hidden[self.first]
        assert self.group is not None
        named = {name: self._chosen(value) for name, value in named.items()}
        made = forward(hidden, *map(self._chosen, more), **named)
        return made[self.group] if index == self.layers - 1 else made

    def _regroup(self, hidden: Tensor, mask: Tensor | None, cache: Any) -> None:
        """Groups neighbouring rows of one text, and gives new groups their keys and values."""
        begun = cache is not None and cache.get_seq_length() > 0
        parts = (hidden[1:] != hidden[:-1]).flatten(1).any(1)
        if mask is not None and len(mask) == len(hidden):
            parts |= (mask[1:] != mask[:-1]).flatten(1).any(1)
        if begun:
            assert self.group is not None
            parts |= self.group[1:] != self.group[:-1]
        starts = torch.cat([parts.new_ones(1), parts])
        before, self.group = self.group, starts.cumsum(0) - 1
        self.first = starts.nonzero()[:, 0]
        if begun and before is not None and int(before[-1]) != int(self.group[-1]):
            source = before[self.first]
            for layer in cache.layers[: self.layers]:
                layer.keys, layer.values = layer.keys[source], layer.values[source]

    def _chosen(self, value: Any) -> Any:
        """Tensors with a value for every row, for the first rows alone."""
        assert self.group is not None
        if isinstance(value, tuple):
            return tuple(self._chosen(part) for part in value)
        if isinstance(value, Tensor) and value.dim() > 1 and len(value) == len(self.group):
            return value[self.first]
        return value
