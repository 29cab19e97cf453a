"""A forward pass over padded rows, and the state of a model during inference."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from loraprobe.composition.forward_pass import rows_of_batch


def padded(
    rows: Sequence[Sequence[int]], pad: int, side: str, device: Any = "cpu"
) -> tuple[Tensor, Tensor]:
    """input_ids and attention_mask [b, longest] (int64), padded on the "left" or the "right"."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, place] = torch.tensor(row, dtype=torch.long)
        mask[i, place] = 1
    return ids.to(device), mask.to(device)


def positions(mask: Tensor) -> Tensor:
    """position_ids [b, n] of an attention mask; padding does not count."""
    return (mask.cumsum(-1) - 1).clamp_min(0)


def tail_logits(
    model: Any, rows: Sequence[Sequence[int]], starts: Sequence[int], pad: int
) -> list[Tensor]:
    """Logits of each row from position `start` on: [len(row) - start, vocab] each.

    Rows are padded on the right, where causal attention does not see the padding. Logits are
    computed only for positions that some row needs, if the model supports it.
    """
    ids, mask = padded(rows, pad, "right", model.device)
    first, options = 0, {}
    if "logits_to_keep" in arguments(model):
        first = min(starts)
        options = {"logits_to_keep": torch.arange(first, ids.shape[1], device=ids.device)}
    with rows_of_batch(ends=[start + 1 for start in starts]):
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False, **options).logits
    return [
        logits[i, start - first : len(row) - first]
        for i, (row, start) in enumerate(zip(rows, starts, strict=True))
    ]


def arguments(model: Any) -> frozenset[str]:
    """The names of the arguments of a model's forward()."""
    return frozenset(inspect.signature(model.forward).parameters)


@contextlib.contextmanager
def answering(model: Any) -> Iterator[None]:
    """Inference mode without dropout; afterwards modules return to their training mode.

    The head gets contiguous hidden states. transformers passes it a slice of the last positions,
    for which torch copies the head's weight once a row: 19 s instead of 0.05 s for 144 rows of
    SmolLM2-135M in bfloat16 on a CPU.
    """
    head = model.get_output_embeddings()
    hook = None if head is None else head.register_forward_pre_hook(_contiguous)
    try:
        with _evaluating(model), torch.inference_mode():
            yield
    finally:
        if hook is not None:
            hook.remove()


@contextlib.contextmanager
def differentiable(model: Any) -> Iterator[None]:
    """Passes without dropout that record gradients, but none of the model's own parameters."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with _evaluating(model), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Evaluation mode; afterwards modules return to their training mode."""
    training = [module for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _contiguous(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0].contiguous(), *args[1:])


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seeds torch's generators; afterwards they return to their earlier state."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
