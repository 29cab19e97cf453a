"""Cheaper steps of LoRA training on the upper layers of a model: less is computed.

* Only the last layers carry the adapter. The layers below never change, so their output for each
  example is computed once and kept; every step starts there, and the backward pass ends there.
* The head of the vocabulary is applied at the positions of the loss alone.
* The examples of a batch are of like length (`LengthSampler`).

All is computed in float32, on every machine. A CPU without bfloat16's instructions is many times
slower in it (a product of 600 x 576 and 576 x 1536 took 133 ms in place of 17 on one with AVX2
alone), and an interrupted build may go on elsewhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from loraprobe_lab.training.batches import IGNORED, Batch, Row, collate


def layers_of(model: Any) -> torch.nn.ModuleList:
    """The decoder layers of a transformers causal model, first to last.

    Raises ValueError if the model has no list of as many layers as its config says.
    """
    count = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return module
    raise ValueError(f"{type(model).__name__} has no list of its {count} layers: leave out upper")


@dataclass
class LowerLayers:
    """Replaces the layers below the last `upper` by their kept outputs for each example.

    states: for each row of the data, [length, hidden], the output of the last of these layers.
    """

    layers: Sequence[Any]
    states: list[torch.Tensor]
    batch: torch.Tensor | None = None  # [rows, width, hidden], the states of the coming step

    @classmethod
    @torch.no_grad()
    def of(
        cls, model: Any, rows: Sequence[Row], upper: int, pad: int, size: int = 64
    ) -> LowerLayers:
        """Reads all rows once. `upper` counts the layers that are left to compute."""
        layers = list(layers_of(model))
        if not 0 < upper < len(layers):
            raise ValueError(f"upper has to lie between 1 and {len(layers) - 1}, not {upper}")
        below, states = layers[:-upper], []
        for start in range(0, len(rows), size):
            batch = collate(rows[start : start + size], pad)
            hidden = _output_of(below[-1], model, batch)
            lengths = batch.attention_mask.sum(-1)
            states += [h[:n].clone() for h, n in zip(hidden, lengths.tolist(), strict=True)]
        return cls(below, states)

    def choose(self, picks: Sequence[int]) -> None:
        """Sets the states for the rows of the coming step, padded on the right with zeros."""
        chosen = [self.states[i] for i in picks]
        self.batch = torch.nn.utils.rnn.pad_sequence(chosen, batch_first=True)

    @contextlib.contextmanager
    def skipped(self) -> Iterator[None]:
        """Makes the layers return the chosen states instead of computing."""
        try:
            for i, layer in enumerate(self.layers):
                layer.forward = self._chosen if i == 0 else (lambda hidden, *_, **__: hidden)
            yield
        finally:
            for layer in self.layers:
                layer.__dict__.pop("forward", None)

    def _chosen(self, *_: Any, **__: Any) -> torch.Tensor:
        if self.batch is None:
            raise RuntimeError("no rows were chosen for this step")
        return self.batch


class _Stop(Exception):
    """Ends a forward pass after the wanted layer."""


def _output_of(layer: Any, model: Any, batch: Batch) -> torch.Tensor:
    """[rows, width, hidden]: the output of `layer`; the layers after it are not computed."""
    found: list[torch.Tensor] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)
        raise _Stop

    handle = layer.register_forward_hook(keep)
    try:
        with contextlib.suppress(_Stop):
            model(**batch.inputs(model))
    finally:
        handle.remove()
    return found[0]


def loss_at_labels(model: Any, wrapped: Any, batch: Batch) -> torch.Tensor:
    """Mean cross entropy of the labelled tokens, as the model's own loss gives it.

    The head sees only the positions before a label. `model` is the causal model inside `wrapped`.
    """
    inputs = batch.inputs(wrapped)
    targets = batch.labels[:, 1:].to(inputs["input_ids"].device)
    where = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    where[:, :-1] = targets != IGNORED

    def pick(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (args[0][where], *args[1:])

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        logits = wrapped(**inputs).logits
    finally:
        handle.remove()
    return torch.nn.functional.cross_entropy(logits.float(), targets[targets != IGNORED])
