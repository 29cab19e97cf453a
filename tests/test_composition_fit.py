"""What a composition refuses to put into a model, each by name."""

from __future__ import annotations

import making
import pytest
import torch
from composing import base, experts, state_of
from making import peft_adapter, random_adapter

from loraprobe.adapter import adapter_of, read_adapter
from loraprobe.composition import Composition, composed
from loraprobe.errors import CompatibilityError, UnsupportedAdapter
from loraprobe.routing.constant import ConstantGates

PATH = "model.layers.0.self_attn.q_proj"
MISFITS = {
    "missing": ({"model.layers.9.self_attn.q_proj": (16, 16)}, None, "which the model does not"),
    "prefix": ({"layers.0.self_attn.q_proj": (16, 16)}, None, rf"nearest it has is {PATH}"),
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
    with (
        pytest.raises(CompatibilityError, match=f"odd.*{message}"),
        composed(model, Composition("c", (experts(1)[0], adapter), ConstantGates())),
    ):
        pass
    assert state_of(model) == before


def test_models_that_hooks_do_not_reach_are_refused():
    composition = Composition("c", experts(1), ConstantGates())
    wrapped = making.peft_model(making.tiny_llama(), target_modules=["q_proj"])
    with pytest.raises(CompatibilityError, match="already carries peft"), composition.into(wrapped):
        pass
    partly = making.tiny_llama()
    making.peft_model(partly.model, target_modules=["q_proj"], task_type=None)
    with (
        pytest.raises(CompatibilityError, match="q_proj already carries"),
        composition.into(partly),
    ):
        pass
    compiled = making.tiny_llama()
    compiled.compile()
    with pytest.raises(CompatibilityError, match="compiled"), composition.into(compiled):
        pass


EXTRAS = {
    "dora": {"use_dora": True, "target_modules": ["q_proj"]},
    "modules_to_save": {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
    "bias": {"bias": "lora_only", "target_modules": ["c_attn"], "fan_in_fan_out": True},
}


@pytest.mark.parametrize("case", EXTRAS)
def test_extras_are_refused_by_name(tmp_path, case):
    kind = "gpt2" if case == "bias" else "untied"
    adapter = read_adapter(peft_adapter(tmp_path / "odd", base(kind), **EXTRAS[case]))
    assert adapter.extras
    with (
        pytest.raises(UnsupportedAdapter, match=rf"odd .*{adapter.extras[0].kind}"),
        composed(base(kind), Composition("c", (adapter,), ConstantGates())),
    ):
        pass


def test_an_adapter_without_modules_is_not_taken_for_the_base():
    with (
        pytest.raises(UnsupportedAdapter, match="empty holds no LoRA factors"),
        composed(base("llama"), Composition("c", (adapter_of("empty", {}),), ConstantGates())),
    ):
        pass


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
    with pytest.raises(UnsupportedAdapter, match="base_copy"), composed(other, composition):
        pass
