"""The loop in which parameters go down a loss, step after step."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


def adamw(
    parameters: Sequence[Tensor],
    descend: Callable[[], None],
    rate: float,
    factor: Callable[[int], float],
    *,
    clip: float,
    decay: float = 0.0,
) -> Iterator[int]:
    """Takes steps of AdamW without end, and gives after each how many were taken.

    descend: gives the parameters their gradients, which are empty before. rate: the learning rate,
    which `factor` multiplies by the number of earlier steps. clip: the largest norm of all
    gradients together. decay: of the weights.
    """
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, factor)
    for step in itertools.count(1):
        descend()
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad(set_to_none=True)
        yield step
