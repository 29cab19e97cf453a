"""What tests of compositions share: bases by name, experts, and a model's whole state."""

from __future__ import annotations

import making
import torch
from torch import nn

from loraprobe.adapter import Adapter


def base(kind: str, dtype: torch.dtype = torch.float32):
    if kind == "gpt2":
        return making.tiny_gpt2().to(dtype)
    if kind == "gemma":
        from transformers import Gemma3ForCausalLM, Gemma3TextConfig

        torch.manual_seed(0)
        config = Gemma3TextConfig(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, head_dim=8, max_position_embeddings=64,
        )  # fmt: skip
        return Gemma3ForCausalLM(config).eval().to(dtype)
    return making.tiny_llama(tied=kind == "llama").to(dtype)


def experts(n: int = 2, **options) -> tuple[Adapter, ...]:
    return tuple(making.random_adapter(f"e{i}", rank=2 + i, seed=i, **options) for i in range(n))


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def state_of(model: nn.Module) -> list:
    """Everything about a model that a composition might leave a trace in."""
    return [
        (
            name,
            module.training,
            sorted(vars(module)),
            [len(hooks) for key, hooks in vars(module).items() if key.endswith("_hooks")],
            module.forward.__func__,
            [(key, p.data_ptr(), p._version, p.dtype) for key, p in module.named_parameters()],
        )
        for name, module in model.named_modules()
    ]
