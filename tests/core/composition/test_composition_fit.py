"""A composition refuses adapters that do not fit a model, and names them."""

import making
import pytest
import torch
from composing import base, experts, refused, state_of
from making import peft_adapter, random_adapter, write_adapter

from loraprobe.adapters import adapter_of, read_adapter
from loraprobe.composition import Composition, composed
from loraprobe.errors import CompatibilityError, UnsupportedAdapter
from loraprobe.routing.constant import ConstantGates

PATH = "model.layers.0.self_attn.q_proj"
MISFITS = {
    "missing": ({"model.layers.9.self_attn.q_proj": (16, 16)}, None, "which the model does not"),
    "prefix": ({"text.layers.0.self_attn.q_proj": (16, 16)}, None, rf"did you mean '{PATH}'"),
    "shape": ({PATH: (16, 32)}, None, f"{PATH} with 32 inputs and 16 outputs.* has 16 and 16"),
    "container": ({"model.layers.0.mlp": (16, 16)}, None, "is a LlamaMLP"),
    "linear-on-embedding": ({"model.embed_tokens": (16, 40)}, None, "as a linear layer.*Embedding"),
    "embedding-on-linear": ({PATH: (16, 16)}, "embedding", "as an embedding layer.*Linear"),
    "vocabulary": ({"model.embed_tokens": (16, 44)}, "embedding", "44 inputs.*has 40"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_named(case):
    shapes, kind, message = MISFITS[case]
    kinds = dict.fromkeys(shapes, kind) if kind else None
    adapter = random_adapter("odd", shapes, kinds=kinds)
    model = making.tiny_llama()
    before = state_of(model)
    refused(
        CompatibilityError,
        f"odd.*{message}",
        model,
        Composition("c", (experts(1)[0], adapter), ConstantGates()),
    )
    assert state_of(model) == before


def test_models_that_hooks_do_not_reach_are_refused():
    composition = Composition("c", experts(1), ConstantGates())
    wrapped = making.peft_model(making.tiny_llama(), target_modules=["q_proj"])
    refused(CompatibilityError, "already carries peft", wrapped, composition)
    partly = making.tiny_llama()
    making.peft_model(partly.model, target_modules=["q_proj"], task_type=None)
    refused(CompatibilityError, "q_proj already carries", partly, composition)
    compiled = making.tiny_llama()
    compiled.compile()
    refused(CompatibilityError, "compiled", compiled, composition)


FACTORS = {
    f"base_model.model.{PATH}.lora_A.weight": torch.ones(4, 16),
    f"base_model.model.{PATH}.lora_B.weight": torch.ones(16, 4),
}
MOE = "base_model.model.model.layers.0.mlp.experts"
EXTRAS = {
    "unclear_tokens": (
        {
            "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta": torch.ones(
                2, 16
            )
        },
        {"trainable_token_indices": [1, 2, 3]},
    ),
    "target_parameter": (
        {f"{MOE}.lora_A.weight": torch.ones(6, 16), f"{MOE}.lora_B.weight": torch.ones(24, 6)},
        {"target_parameters": ["mlp.experts.gate_up_proj"]},
    ),
    "dora_magnitude": ({f"base_model.model.{PATH}.lora_magnitude_vector": torch.ones(9)},
        {"use_dora": True}),
    "unknown": ({"base_model.model.something.else": torch.ones(3)}, {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", EXTRAS)
def test_extras_are_refused_by_name(tmp_path, kind):
    tensors, config = EXTRAS[kind]
    adapter = read_adapter(write_adapter(tmp_path / "odd", FACTORS | tensors, **config))
    assert {extra.kind for extra in adapter.extras} == {kind}
    refused(
        UnsupportedAdapter,
        rf"odd .*{kind}",
        base("llama"),
        Composition("c", (adapter,), ConstantGates()),
    )


def test_an_adapter_without_modules_is_not_taken_for_the_base():
    refused(
        UnsupportedAdapter,
        "empty holds no LoRA factors",
        base("llama"),
        Composition("c", (adapter_of("empty", {}),), ConstantGates()),
    )


def test_a_copy_of_the_bases_own_weights_is_no_extra(tmp_path):
    config = {"target_modules": ["embed_tokens"], "r": 2}
    adapter = read_adapter(peft_adapter(tmp_path / "a", base("untied"), **config))
    assert {extra.kind for extra in adapter.extras} == {"base_copy"}
    composition = Composition("c", (adapter,), ConstantGates())
    for dtype in (torch.float32, torch.bfloat16):
        with composed(base("untied", dtype), composition):
            pass
    other = base("untied")
    with torch.no_grad():
        other.model.embed_tokens.weight[3, 3] += 1
    refused(UnsupportedAdapter, "base_copy", other, composition)
