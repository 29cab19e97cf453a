"""The MLP of the last layer as a store of facts, read at the token that answers a prompt.

For one token the layer computes ``x -> k = silu(gate x) * (up x) -> v = down k``: k is the key, v
the value that is added to the residual stream, which then goes to the norm and the head alone. So
a change of `down` changes the answer through its effect on this one key, as in the theory, and
everything the base computes before the layer can be kept: an edit or a training of this MLP needs
no forward pass of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

BATCH = 100  # prompts that go through the base at once


@dataclass(frozen=True)
class PromptKeys:
    """The layer's inputs, keys and values at the last token of prompts, in the store's dtype.

    inputs: [N, hidden], what the MLP reads. before: [N, hidden], the residual stream that the
    value is added to. keys: [N, inner]. values: [N, hidden].
    """

    inputs: Tensor
    before: Tensor
    keys: Tensor
    values: Tensor

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, rows: Any) -> PromptKeys:
        return PromptKeys(self.inputs[rows], self.before[rows], self.keys[rows], self.values[rows])


@dataclass(frozen=True)
class FactStore:
    """The last layer's MLP with what follows it. gate, up: [inner, hidden]; down: [hidden, inner];
    norm: [hidden]; head: [vocabulary, hidden]."""

    model: Any
    tokenizer: Any
    gate: Tensor
    up: Tensor
    down: Tensor
    norm: Tensor
    eps: float
    head: Tensor

    @classmethod
    def of(cls, model: Any, tokenizer: Any, dtype: torch.dtype = torch.float64) -> FactStore:
        """Reads the last layer of a loaded Llama-shaped causal model; weights are copied."""
        mlp = model.model.layers[-1].mlp

        def copy(weight: Tensor) -> Tensor:
            return weight.detach().to(dtype, copy=True)

        return cls(
            model,
            tokenizer,
            copy(mlp.gate_proj.weight),
            copy(mlp.up_proj.weight),
            copy(mlp.down_proj.weight),
            copy(model.model.norm.weight),
            float(model.model.norm.variance_epsilon),
            copy(model.lm_head.weight),
        )

    def token(self, words: Sequence[str]) -> Tensor:
        """The one token of each word. [N]"""
        rows = self.tokenizer(list(words), add_special_tokens=False)["input_ids"]
        if any(len(row) != 1 for row in rows):
            raise ValueError("an answer of several tokens is no value of one key")
        return torch.tensor([row[0] for row in rows])

    @torch.no_grad()
    def read(self, prompts: Sequence[str]) -> PromptKeys:
        """Runs the base on prompts of one length in tokens and keeps the layer's inputs.

        Raises ValueError for prompts of several lengths.
        """
        rows = self.tokenizer(list(prompts))["input_ids"]
        if len({len(row) for row in rows}) != 1:
            raise ValueError("prompts that are read together have one length in tokens")
        read: list[Tensor] = []
        before: list[Tensor] = []
        layer = self.model.model.layers[-1]
        hooks = [
            layer.mlp.register_forward_pre_hook(lambda _, args: read.append(args[0][:, -1])),
            layer.post_attention_layernorm.register_forward_pre_hook(
                lambda _, args: before.append(args[0][:, -1])
            ),
        ]
        try:
            for start in range(0, len(rows), BATCH):
                self.model.model(torch.tensor(rows[start : start + BATCH]), use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return self.keys_of(torch.cat(read), torch.cat(before))

    def keys_of(self, inputs: Tensor, before: Tensor) -> PromptKeys:
        """Keys and values of the MLP's inputs."""
        inputs, before = inputs.to(self.down.dtype), before.to(self.down.dtype)
        keys = torch.nn.functional.silu(inputs @ self.gate.T) * (inputs @ self.up.T)
        return PromptKeys(inputs, before, keys, keys @ self.down.T)

    def logits(self, residual: Tensor) -> Tensor:
        """The model's logits from a residual stream: [..., hidden] -> [..., vocabulary]."""
        scale = (residual.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt()
        return residual * scale * self.norm @ self.head.T

    def predicted(self, asked: PromptKeys, change: Tensor | None = None) -> Tensor:
        """The answer's token, with `change` [N, hidden] added to the values. [N]"""
        values = asked.values if change is None else asked.values + change
        return self.logits(asked.before + values).argmax(-1)

    def changes(self, asked: PromptKeys, answers: Tensor, certainty: float = 0.9) -> Tensor:
        """The least change of each value that gives the answer [N] this probability: [N, hidden].

        The change lies along the answer's direction in the head. A fact's edit has to write the old
        value plus this change. Raises ValueError if no length of that direction is enough.
        """
        direction = (self.head[answers] - self.head.mean(0)) * self.norm
        direction = direction / direction.norm(dim=-1, keepdim=True)
        start = asked.before + asked.values

        def sure(length: Tensor) -> Tensor:
            chances = self.logits(start + length[:, None] * direction).softmax(-1)
            return chances.gather(1, answers[:, None])[:, 0] >= certainty

        return _least(sure, start.norm(dim=-1))[:, None] * direction


def _least(sure: Callable[[Tensor], Tensor], scale: Tensor) -> Tensor:
    """The least length [N] at which each row is sure, by doubling and bisection."""
    high = scale.clone()
    for _ in range(12):
        high = torch.where(sure(high), high, 2 * high)
    if not bool(sure(high).all()):
        raise ValueError("no value makes the model say this answer")
    low = torch.zeros_like(high)
    for _ in range(40):
        middle = (low + high) / 2
        enough = sure(middle)
        high, low = torch.where(enough, middle, high), torch.where(enough, low, middle)
    return high
