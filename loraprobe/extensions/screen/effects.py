"""Which adapters of a library to ask first: those that add most to what the base makes of prompts.

LoGo (arXiv 2511.07129) chooses adapters for a prompt by the norm of what they add at its last
token. The base reads the prompts once for all adapters, and each is applied to what the last layer
that it changes reads. `benchmarks/retrieval.py` measures what such an order finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loraprobe.adapters import Adapter
from loraprobe.adapters.names import number_in
from loraprobe.composition.layers import input_of
from loraprobe.scoring import ModelScorer, read_texts

PROMPTS = 16  # of a form of the question that are read


def by_effect(
    scorer: ModelScorer, forms: Sequence[Sequence[str]], adapters: Callable[[], Iterable[Adapter]]
) -> list[int]:
    """The places of adapters in the order of what each adds to the last layer that it changes.

    forms: prompts of each form of the question; the forms take turns, so that an adapter comes
    early if it adds much in one of them. adapters: opens them one by one, and is called twice.
    """
    last = {path for adapter in adapters() for path in _last_modules(adapter)}
    inputs = [_last_inputs(scorer, form[:PROMPTS], last) for form in forms]
    norms = np.array([[_norm(adapter, form) for form in inputs] for adapter in adapters()])
    places = np.argsort(np.argsort(-norms, axis=0, kind="stable"), axis=0)
    order: list[int] = np.argsort(places.min(1), kind="stable").tolist()
    return order


def _last_modules(adapter: Adapter) -> list[str]:
    """The modules of the last layer that an adapter changes."""
    highest = max(map(_layer, adapter.layout), default=-1)
    return [path for path in adapter.layout if _layer(path) == highest]


def _layer(path: str) -> int:
    """The number of the layer of a module; -1 for one outside of the layers."""
    return next((at for part in path.split(".") if (at := number_in(part)) is not None), -1)


@torch.no_grad()
def _last_inputs(scorer: ModelScorer, prompts: Sequence[str], paths: Set[str]) -> dict[str, Tensor]:
    """The inputs [prompts, in] of modules at the last token of prompts, in any order.

    A module that does not read every token, such as a mixture's expert, is left out.
    """
    rows: dict[str, list[Tensor]] = {}
    passes: list[Tensor] = []  # the masks [batch, length] of the passes that were not repeated

    def see(mask: Tensor | None) -> None:
        if mask is None:
            passes.pop()
        else:
            passes.append(mask)

    def take(path: str, _: Any, args: Any, kwargs: Any, output: Any) -> None:
        x, mask = input_of(args, kwargs), passes[-1]
        if x.shape[:-1] == mask.shape:
            kept = rows.setdefault(path, [])
            del kept[len(passes) - 1 :]
            kept.append(x[torch.arange(len(x)), mask.sum(1).to(x.device) - 1].float().cpu())

    with ExitStack() as undo:
        for path, module in scorer.model.named_modules():
            if path in paths:
                hook = module.register_forward_hook(partial(take, path), with_kwargs=True)
                undo.callback(hook.remove)
        read_texts(scorer, prompts, see)
    return {path: torch.cat(kept) for path, kept in rows.items()}


@torch.no_grad()
def _norm(adapter: Adapter, inputs: dict[str, Tensor]) -> float:
    """The mean norm over prompts of what an adapter adds to its last modules together."""
    squares = torch.zeros(1)
    for path in (path for path in _last_modules(adapter) if path in inputs):
        update = adapter.modules[path].to(torch.float32)
        added = inputs[path] @ update.A.T @ update.B.T * update.scaling
        squares = squares + added.square().sum(-1)
    return float(squares.sqrt().mean())
