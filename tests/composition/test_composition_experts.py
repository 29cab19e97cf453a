"""Scaled (DoRA) and full experts, and biases: as peft runs them, and against dense weights."""

from __future__ import annotations

import warnings

import pytest
import torch
from composing import base, relative, state_of
from making import hidden, peft_adapter, random_update

from loraprobe.adapters import Adapter, adapter_of, read_adapter
from loraprobe.composition import Composition, composed
from loraprobe.routing.constant import ConstantGates

EVERY_LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GPT2 = {"target_modules": ["c_attn", "c_fc"], "r": 3, "fan_in_fan_out": True}
CASES = {
    "dora": ("llama", {"target_modules": EVERY_LLAMA, "r": 3, "use_dora": True}),
    "dora-conv1d": ("gpt2", GPT2 | {"use_dora": True}),
    "dora-rslora": (
        "llama",
        {"target_modules": ["q_proj", "up_proj"], "r": 4, "use_dora": True, "use_rslora": True},
    ),
    "dora-embedding": ("llama", {"target_modules": ["embed_tokens"], "r": 3, "use_dora": True}),
    "dora-scaled-embedding": (
        "gemma",
        {"target_modules": ["embed_tokens", "q_proj"], "r": 3, "use_dora": True},
    ),
    "dora-and-biases": ("gpt2", GPT2 | {"use_dora": True, "bias": "all"}),
    "lora-bias": ("llama", {"target_modules": EVERY_LLAMA, "r": 3, "lora_bias": True}),
    "lora-bias-conv1d": ("gpt2", GPT2 | {"lora_bias": True}),
    "bias-all": ("gpt2", GPT2 | {"bias": "all"}),
    "bias-lora-only": ("gpt2", GPT2 | {"bias": "lora_only"}),
    "head": ("untied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "embedding": ("untied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "norm": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["model.norm"]}),
    "layer-norms": ("gpt2", GPT2 | {"modules_to_save": ["ln_1"]}),
    "tied-embedding": (
        "llama",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    ),
    "tied-head": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "tied-both": (
        "llama",
        {
            "target_modules": ["q_proj"],
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        },
    ),
    "dora-and-head": (
        "untied",
        {"target_modules": ["q_proj"], "use_dora": True, "modules_to_save": ["lm_head"]},
    ),
}


def partner_of(adapter: Adapter) -> Adapter:
    """A plain LoRA on the same modules, whose gate is 0."""
    updates = {
        path: random_update(info.out_features, info.in_features, 2, seed=n)
        for n, (path, info) in enumerate(adapter.layout.items())
    }
    return adapter_of("partner", updates, kinds={p: i.kind for p, i in adapter.layout.items()})


def as_peft_runs_it(model, directory):
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return hidden(PeftModel.from_pretrained(model, str(directory)).eval())


@pytest.mark.parametrize("case", CASES)
# bf16 keeps 8 bits: 2^-8 is its rounding, and most cases agree to the last bit.
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-8), (torch.float64, 1e-12)]
)
def test_one_hot_gate_is_the_adapter_as_peft_runs_it(tmp_path, case, dtype, bound):
    kind, config = CASES[case]
    directory = peft_adapter(tmp_path / "a", base(kind), seed=3, **config)
    adapter = read_adapter(directory)
    model = base(kind, dtype)
    plain, before = hidden(model), state_of(model)
    both = (partner_of(adapter), adapter)
    with composed(model, Composition("one", both, ConstantGates.one_hot(1, 2))):
        found = hidden(model)
    assert state_of(model) == before
    wanted = as_peft_runs_it(model, directory)
    print("REL", case, dtype, relative(found, wanted))
    assert relative(plain, wanted) > 0.01  # the adapter has an effect to be wrong about
    assert relative(found, wanted) <= bound
