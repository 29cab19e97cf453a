"""Compares training several adapters in one batch with training one after the other with peft.

    python benchmarks/batched_training.py [--adapters 4] [--steps 30]

The base is the small one that ships with the package. "Batched" puts the examples of all adapters
into one batch, multiplies each row by the factors of its own adapter (torch.bmm), and makes one
AdamW step for all; the losses of both ways are compared to show that the work is equal. Times are
CPU seconds of one thread. The script prints their ratio; above 1, batching is faster.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from loraprobe.base.quiet import quiet
from loraprobe_lab.training import load_base
from loraprobe_lab.world import shipped_world

RANK, BATCH, LENGTH = 16, 32, 14


def batches(vocabulary: int, adapters: int, steps: int) -> Tensor:
    """Token ids [adapters, steps, batch, length]; what they say does not matter for the time."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(5, vocabulary, (adapters, steps, BATCH, LENGTH), generator=generator)


def loss_of(model: Any, ids: Tensor) -> Tensor:
    """Mean loss of every row of token ids [rows, length]: [rows]."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    loss = nn.functional.cross_entropy(logits.mT, ids[:, 1:], reduction="none")
    return loss.mean(-1)


def factors(model: Any, adapter: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Initial A [r, in] and B [out, r] of one adapter, equal in both ways."""
    generator = torch.Generator().manual_seed(adapter)
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != "lm_head":
            rows, columns = module.weight.shape
            A = torch.randn(RANK, columns, generator=generator) / columns**0.5
            found[name] = (A, torch.zeros(rows, RANK))
    return found


def one_by_one(model: Any, data: Tensor) -> list[float]:
    """peft, one adapter after the other; the last loss of each."""
    from peft import LoraConfig, get_peft_model

    losses = []
    for adapter, own in enumerate(data):
        start = factors(model, adapter)
        wrapped = get_peft_model(
            model, LoraConfig(r=RANK, lora_alpha=RANK, target_modules=sorted(start))
        )
        for name, (A, B) in start.items():
            module = wrapped.get_submodule(f"base_model.model.{name}")
            module.lora_A["default"].weight.data.copy_(A)
            module.lora_B["default"].weight.data.copy_(B)
        own_parameters = [p for p in wrapped.parameters() if p.requires_grad]
        losses.append(train(lambda ids, w=wrapped: loss_of(w, ids).mean(), own_parameters, own))
        wrapped.unload()
    return losses


def together(model: Any, data: Tensor) -> list[float]:
    """All adapters in one batch; the last loss of each."""
    adapters, _, size, _ = data.shape
    starts = [factors(model, adapter) for adapter in range(adapters)]
    A = {name: nn.Parameter(torch.stack([s[name][0] for s in starts])) for name in starts[0]}
    B = {name: nn.Parameter(torch.stack([s[name][1] for s in starts])) for name in starts[0]}
    last: list[float] = []

    def loss(ids: Tensor) -> Tensor:
        each = loss_of(model, ids.reshape(adapters * size, -1)).reshape(adapters, size).mean(-1)
        last[:] = each.tolist()
        return each.sum()

    with side_by_side(model, A, B, adapters):
        train(loss, [*A.values(), *B.values()], data.transpose(0, 1))
    return last


@contextmanager
def side_by_side(model: Any, A: Any, B: Any, adapters: int) -> Iterator[None]:
    """Adds each row's own update to the outputs of the base's layers."""

    def hook(name: str) -> Callable:
        def add(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            x = inputs[0].reshape(adapters, -1, inputs[0].shape[-1])
            return output + (x @ A[name].mT @ B[name].mT).reshape(output.shape)

        return add

    handles = [model.get_submodule(name).register_forward_hook(hook(name)) for name in A]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def train(loss: Callable[[Tensor], Tensor], parameters: list, data: Tensor) -> float:
    """AdamW over the batches of data; the last loss."""
    optimiser = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0)
    value = torch.tensor(0.0)
    for ids in data:
        value = loss(ids)
        value.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    return float(value.detach())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--steps", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with quiet():
        model, tokenizer = load_base(shipped_world().base)
        data = batches(len(tokenizer), options.adapters, options.steps)
        seconds, losses = {}, {}
        for name, way in (("peft, one by one", one_by_one), ("one batch", together)):
            way(model, data[:, :2])  # warm
            start = time.process_time()
            losses[name] = way(model, data)
            seconds[name] = time.process_time() - start
    for name, value in seconds.items():
        shown = ", ".join(f"{loss:.4f}" for loss in losses[name])
        print(f"{name:18} {value:6.2f} s CPU   last losses {shown}")
    first, second = seconds.values()
    print(f"batched over {options.adapters} adapters: {first / second:.2f}x")


if __name__ == "__main__":
    main()
