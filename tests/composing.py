"""Helpers for tests of compositions: bases by name, experts, and the whole state of a model."""

import copy

import making
import pytest
import torch
from torch import nn
from words import word_tokenizer

from loraprobe.adapters import Adapter, adapter_of
from loraprobe.composition import Composition
from loraprobe.routing._learned import LearnableGates
from loraprobe.routing.constant import ConstantGates
from loraprobe.scoring import ModelScorer


def base(kind: str, dtype: torch.dtype = torch.float32):
    if kind == "gpt2":
        return making.tiny_gpt2().to(dtype)
    if kind == "gemma":
        from transformers import Gemma3ForCausalLM, Gemma3TextConfig

        torch.manual_seed(0)
        sizes = {**making.SIZES, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
        return Gemma3ForCausalLM(Gemma3TextConfig(**sizes)).eval().to(dtype)
    return making.tiny_llama(tied=kind == "llama").to(dtype)


def logits(model, composition: Composition) -> torch.Tensor:
    with composition.into(model):
        return making.hidden(model)


def refused(error: type[Exception], match: str, model: nn.Module, composition: Composition) -> None:
    """Asserts that the composition cannot be put into the model, with this error."""
    with pytest.raises(error, match=match), composition.into(model):
        pass


def experts(n: int = 2, **options) -> tuple[Adapter, ...]:
    return tuple(making.random_adapter(f"e{i}", rank=2 + i, seed=i, **options) for i in range(n))


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm())


def state_of(model: nn.Module) -> list:
    """Every part of a model that a composition could change."""
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


def dora(name: str, seed: int, shapes=making.LLAMA, **options) -> Adapter:
    """A DoRA adapter whose magnitudes are near the row norms of a base, some of them far."""
    plain = making.random_adapter(name, shapes, rank=2 + seed, seed=seed, scaling=0.1, **options)
    generator = torch.Generator().manual_seed(seed)
    magnitudes = {
        path: torch.rand(info.out_features, generator=generator) * 0.2
        for path, info in plain.layout.items()
    }
    return adapter_of(name, dict(plain.modules), magnitudes=magnitudes)


def dense_ratio(adapter: Adapter, path: str, weight: torch.Tensor) -> torch.Tensor:
    """c, computed from the dense weights."""
    V = weight.double() + adapter.modules[path].to(torch.float64).delta()
    return adapter.magnitudes[path].double() / V.norm(dim=1)


def dense_change(adapter: Adapter, path: str, weight: torch.Tensor) -> torch.Tensor:
    """The change of a weight [out, in] by one expert at gate 1."""
    delta = adapter.modules[path].to(torch.float64).delta()
    if path not in adapter.magnitudes:
        return delta
    c = dense_ratio(adapter, path, weight)[:, None]
    return (c - 1) * weight.double() + c * delta


def with_changes(model: nn.Module, three, gates) -> torch.Tensor:
    """Logits of a copy whose weights hold the combination: the oracle."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for expert, gate in zip(three, gates, strict=True):
            for path in expert.modules:
                weight = model.get_submodule(path).weight
                change = gate * dense_change(expert, path, weight)
                other.get_submodule(path).weight.add_(change)
            for name, tensor in expert.whole.items():
                own, base_one = other.get_parameter(name), model.get_parameter(name)
                own.add_(gate * (tensor.double() - base_one))
    return making.hidden(other)


def mixed_kinds() -> tuple[Adapter, ...]:
    """A DoRA, a plain LoRA, and a LoRA with a head and a norm of its own."""
    third = making.random_adapter("headed", seed=5, scaling=0.1)
    generator = torch.Generator().manual_seed(5)
    whole = {
        "lm_head.weight": torch.randn(40, 16, generator=generator) * 0.1,
        "model.norm.weight": torch.rand(16, generator=generator) + 0.5,
    }
    headed = adapter_of("headed", dict(third.modules), whole=whole)
    return dora("dora", 1), making.random_adapter("plain", seed=3, scaling=0.1), headed


LAYER = {"attn.c_attn": (48, 16), "mlp.c_fc": (64, 16), "mlp.c_proj": (16, 64)}
GPT2 = {f"transformer.h.{i}.{name}": shape for i in range(2) for name, shape in LAYER.items()}
EMBEDDED = {**making.LLAMA, "model.embed_tokens": (16, 40)}


def scene(kind: str, batch_size="auto"):
    """A scorer of a base whose every weight matters, and two experts of different modules."""
    model = making.tiny_gpt2() if kind == "gpt2" else making.tiny_llama()
    making.sharpened(model)
    options = {
        "llama": {},
        "gpt2": {"shapes": GPT2, "kinds": dict.fromkeys(GPT2, "conv1d")},
        "embedded": {"shapes": EMBEDDED, "kinds": {"model.embed_tokens": "embedding"}},
    }[kind]
    first, second = experts(2, scaling=0.15, **options)
    paths = list(second.modules)[:-3]  # the second lacks some modules
    second = making.adapter_of(
        "e1", {p: second.modules[p] for p in paths}, kinds=options.get("kinds")
    )
    return ModelScorer(model, word_tokenizer(), batch_size=batch_size), (first, second)


def alone(adapters, i, gate=1.0):
    weights = tuple(gate if j == i else 0.0 for j in range(len(adapters)))
    return Composition("alone", adapters, ConstantGates(weights))


def learnable(*gates: float) -> LearnableGates:
    """Gates of all modules that require gradients."""
    return LearnableGates(torch.tensor([gates], requires_grad=True), lambda _: 0)
