"""Weights that are fitted to items (`--weights learn`): constant gates, found by gradient descent.

The gates g of sum_i g_i dW_i minimise

    mean over tasks and items of nats a token of the gold answer  +  0.05 * mean_i |g_i|

within [-1.5, 1.5]: LoraHub's objective (arXiv 2307.13269) for causal models. There is one gate an
adapter or, with `learn:per=layer`, one for each adapter in each layer, which is CAT of LoRA Soups
(arXiv 2410.13025; in its code each linear module has gates, which sum to 1). AdamW starts from 1/n
each, and of all gates on its way the best are kept, so the result is at least as good as the
average on these items. If several answers of an item are accepted, the one with the smallest loss
counts. Gates have four decimals, as they are printed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from loraprobe.adapters import Adapter, layer_of, natural
from loraprobe.composition import Composition, Router, TokenGates
from loraprobe.defaults import LEARNING_BOUND, LEARNING_SHRINK, LEARNING_STEPS
from loraprobe.lora.lowrank import LowRank
from loraprobe.records import LearnedWeights
from loraprobe.scoring import ModelScorer, loss_with_gradients
from loraprobe.tasks.splits import TaskSplit

RATE = 0.2  # of AdamW at its start; it falls to 0 along a cosine
BETAS = 0.7, 0.9  # AdamW forgets gradients faster than by default, as it takes few steps


@dataclass(frozen=True, eq=False)
class LearnableGates(Router):
    """Constant gates by which a loss can be differentiated: values [rows, n] of n experts.

    row_of: a module's path, or the name of a whole parameter -> its row.
    """

    values: Tensor
    row_of: Callable[[str], int]

    constant: ClassVar[bool] = False  # or they would be multiplied into the factors beforehand

    __hash__ = object.__hash__
    __eq__ = object.__eq__  # else all would be equal, since routers compare their options

    @property
    def weighs_whole(self) -> bool:
        """Constant gates can weigh whole parameters."""
        return True

    def gates(
        self, module: str, experts: Sequence[LowRank], present: Sequence[int], n: int
    ) -> TokenGates:
        """A function of any x to the gates [k], which are broadcast over tokens."""
        return self.embedding_gates(module, present)

    def embedding_gates(self, module: str, present: Sequence[int]) -> TokenGates:
        row, index = self.row_of(module), list(present)
        return lambda x: self.values[row, index].to(device=x.device, dtype=x.dtype)


def fit_weights(
    scorer: ModelScorer, experts: Sequence[Adapter], parts: TaskSplit, per_layer: bool = False
) -> LearnedWeights:
    """The best gates on the way of AdamW from 1/n each, in LEARNING_STEPS passes.

    parts: the items that were set apart for it, and the others, of which it tells only the number.
    per_layer: whether each layer gets gates of its own. It reports to the scorer's `progress`.
    Raises TaskError for an item that the context cannot hold.
    """
    paths = [path for expert in experts for path in (*expert.layout, *expert.whole)]
    layers = sorted(set(map(layer_of, paths)), key=natural) if per_layer else [""]
    rows = {layer: row for row, layer in enumerate(layers)}
    gates = torch.full((len(layers), len(experts)), 1 / len(experts), requires_grad=True)
    router = LearnableGates(gates, lambda path: rows.get(layer_of(path), 0))
    composition = Composition("learn", tuple(experts), router)
    tasks = parts.apart
    asked = [(item, 1 / len(task.items) / len(tasks)) for task in tasks for item in task.items]
    items = [[(item.prompt, answer) for answer in item.answers] for item, _ in asked]
    shares = [share for _, share in asked]  # of each item in the loss
    optimiser = torch.optim.AdamW([gates], lr=RATE, betas=BETAS, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, LEARNING_STEPS)
    tried: list[tuple[float, float, Tensor]] = []  # objective, loss, gates
    for step in range(LEARNING_STEPS):
        optimiser.zero_grad()
        _round(gates)
        with scorer.with_composition(composition):
            loss = loss_with_gradients(scorer, items, shares)
        shrinking = LEARNING_SHRINK * gates.abs().mean()
        tried.append((loss + shrinking.item(), loss, gates.detach().clone()))
        shrinking.backward()
        optimiser.step()
        falling.step()
        if scorer.progress is not None:
            scorer.progress("learn weights", step + 1, LEARNING_STEPS)
    objective, loss, best = min(tried, key=lambda one: one[0])
    rounded = {layer: tuple(_decimals(best[row])) for layer, row in rows.items()}
    names = [adapter.name for adapter in experts]
    return LearnedWeights(
        weights=dict(zip(names, _decimals(best.mean(0)), strict=True)),
        objective=objective,
        loss=loss,
        uniform=tried[0][0],
        evaluations=LEARNING_STEPS,
        items=parts.items[0],
        clusters=parts.groups,
        left=parts.items[1],
        layers=rounded if per_layer else {},
    )


@torch.no_grad()
def _round(gates: Tensor) -> None:
    """Brings gates within the bounds and to four decimals; never all to zero, which is no merge."""
    gates.copy_(gates.clamp(-LEARNING_BOUND, LEARNING_BOUND).round(decimals=4))
    if not gates.any():
        gates[0, 0] = 1e-4


def _decimals(gates: Tensor) -> list[float]:
    return [round(gate, 4) + 0.0 for gate in gates.tolist()]
