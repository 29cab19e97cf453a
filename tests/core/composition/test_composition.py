"""Compositions in real models: against peft, against dense float64 weights, and without a trace."""

import warnings

import making
import pytest
import torch
from composing import base, experts, refused, relative, state_of
from making import hidden, peft_adapter, random_update
from torch import nn

from loraprobe.adapters import Adapter, adapter_of, read_adapter
from loraprobe.composition import Composition, composed
from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank
from loraprobe.routing import ROUTERS
from loraprobe.routing.constant import ConstantGates

EVERY_LLAMA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GPT2 = {"target_modules": ["c_attn", "c_fc"], "r": 3, "fan_in_fan_out": True}
PEFT_CASES = {
    "llama-linear": ("llama", {"target_modules": EVERY_LLAMA, "r": 3, "lora_alpha": 5}),
    "llama-rslora": ("llama", {"target_modules": ["q_proj"], "r": 4, "use_rslora": True}),
    "llama-patterns": ("llama", {"target_modules": ["q_proj", "up_proj"], "r": 4,
        "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.mlp.up_proj": 3}}),
    "llama-embedding-and-head": ("untied", {"target_modules": ["embed_tokens", "lm_head"], "r": 3}),
    "llama-tied-embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"], "r": 3}),
    "llama-tied-adapters": ("llama",
        {"target_modules": ["embed_tokens"], "r": 3, "ensure_weight_tying": True}),
    "gpt2-conv1d": ("gpt2",
        {"target_modules": ["c_attn", "c_proj", "c_fc"], "r": 3, "fan_in_fan_out": True}),
    "gpt2-wte": ("gpt2",
        {"target_modules": ["wte", "wpe", "c_attn"], "r": 3, "fan_in_fan_out": True}),
    "gemma-scaled-embedding": ("gemma", {"target_modules": ["embed_tokens", "q_proj"], "r": 3}),
    "dora": ("llama", {"target_modules": EVERY_LLAMA, "r": 3, "use_dora": True}),
    "dora-conv1d": ("gpt2", GPT2 | {"use_dora": True}),
    "dora-rslora": ("llama",
        {"target_modules": ["q_proj", "up_proj"], "r": 4, "use_dora": True, "use_rslora": True}),
    "dora-embedding": ("llama", {"target_modules": ["embed_tokens"], "r": 3, "use_dora": True}),
    "dora-scaled-embedding": ("gemma",
        {"target_modules": ["embed_tokens", "q_proj"], "r": 3, "use_dora": True}),
    "dora-and-biases": ("gpt2", GPT2 | {"use_dora": True, "bias": "all"}),
    "lora-bias": ("llama", {"target_modules": EVERY_LLAMA, "r": 3, "lora_bias": True}),
    "lora-bias-conv1d": ("gpt2", GPT2 | {"lora_bias": True}),
    "bias-all": ("gpt2", GPT2 | {"bias": "all"}),
    "bias-lora-only": ("gpt2", GPT2 | {"bias": "lora_only"}),
    "head": ("untied", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "embedding": ("untied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "norm": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["model.norm"]}),
    "layer-norms": ("gpt2", GPT2 | {"modules_to_save": ["ln_1"]}),
    "tied-embedding": ("llama",
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "tied-head": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "tied-both": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"],
        "ensure_weight_tying": True}),
    "dora-and-head": ("untied",
        {"target_modules": ["q_proj"], "use_dora": True, "modules_to_save": ["lm_head"]}),
}  # fmt: skip


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


@pytest.mark.parametrize("case", PEFT_CASES)
# bf16 keeps 8 bits: 2^-8 is its rounding, and most cases agree to the last bit.
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-8), (torch.float64, 1e-12)]
)
def test_one_hot_gate_is_the_adapter_as_peft_runs_it(tmp_path, case, dtype, bound):
    kind, config = PEFT_CASES[case]
    directory = peft_adapter(tmp_path / "a", base(kind), seed=3, **config)
    adapter = read_adapter(directory)
    model = base(kind, dtype)
    plain, before = hidden(model), state_of(model)
    both = (partner_of(adapter), adapter)
    with composed(model, Composition("one", both, ConstantGates.one_hot(1, 2))):
        found = hidden(model)
    assert state_of(model) == before
    wanted = as_peft_runs_it(model, directory)
    assert relative(plain, wanted) > 0.01  # the adapter has an effect to be wrong about
    assert relative(found, wanted) <= bound


def with_weights(model: nn.Module, changes: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits with dense deltas added to the weights: the oracle."""
    with torch.no_grad():
        for path, delta in changes.items():
            model.get_submodule(path).weight.add_(delta)
        logits = hidden(model)
        for path, delta in changes.items():
            model.get_submodule(path).weight.sub_(delta)
    return logits


@pytest.mark.parametrize("router", ["constant", "arrow"])
def test_nothing_stays_behind(router):
    model = making.tiny_llama()
    composition = Composition("c", experts(2), ROUTERS.make(router))
    before, logits = state_of(model), hidden(model)
    with composed(model, composition) as inside:
        assert inside is model
        assert state_of(model) != before
        assert not torch.equal(hidden(model), logits)
    assert state_of(model) == before
    assert torch.equal(hidden(model), logits)
    with pytest.raises(ZeroDivisionError), composed(model, composition):
        raise ZeroDivisionError
    assert state_of(model) == before
    with composed(model, composition):  # and it can be entered again after that
        assert not torch.equal(hidden(model), logits)


def test_nothing_stays_behind_when_entering_fails_half_way(monkeypatch):
    model = making.tiny_llama()
    before, hooked = state_of(model), []
    real = nn.Linear.register_forward_hook

    def fails_at_the_fifth(self, *args, **kwargs):
        if len(hooked) == 5:
            raise RuntimeError("planted")
        hooked.append(self)
        return real(self, *args, **kwargs)

    monkeypatch.setattr(nn.Linear, "register_forward_hook", fails_at_the_fifth, raising=False)
    composition = Composition("c", experts(2), ConstantGates())
    refused(RuntimeError, "planted", model, composition)
    monkeypatch.undo()
    assert state_of(model) == before
    with composed(model, composition):
        pass


def test_nesting_is_refused_and_other_models_are_free():
    one, other = making.tiny_llama(0), making.tiny_llama(1)
    composition = Composition("c", experts(2), ConstantGates())
    with composed(one, composition):
        inside = hidden(one)
        with composed(other, composition):
            pass
        refused(UsageError, "already carries a composition", one, composition)
        assert torch.equal(hidden(one), inside)  # the refusal did not take the first one out


def test_no_experts_is_the_base():
    model = making.tiny_llama()
    before = hidden(model)
    with composed(model, Composition("base", (), ConstantGates())):
        assert torch.equal(hidden(model), before)


def test_gate_zero_silences_even_a_broken_expert():
    model, (good, bad) = making.tiny_llama(), experts(2)
    broken = adapter_of(
        "bad", {p: LowRank(u.A, u.B * float("nan"), 1.0) for p, u in bad.modules.items()}
    )
    with composed(model, Composition("c", (good, broken), ConstantGates.one_hot(0, 2))):
        found = hidden(model)
    with composed(model, Composition("c", (good,), ConstantGates())):
        assert torch.equal(hidden(model), found)


PATH = "model.layers.0.self_attn.q_proj"


def test_experts_that_lack_a_module_count_as_zero_under_constant_gates():
    model, (a, b) = making.tiny_llama().double(), experts(2)
    partial = adapter_of("b", {PATH: b.modules[PATH]})
    composition = Composition("c", (a, partial), ConstantGates())
    with composed(model, composition):
        found = hidden(model)
    changes = {p: a.modules[p].to(torch.float64).delta() / 2 for p in a.modules}
    changes[PATH] = changes[PATH] + partial.modules[PATH].to(torch.float64).delta() / 2
    assert relative(found, with_weights(model, changes)) < 1e-12


def test_weights_must_match_the_experts():
    with pytest.raises(UsageError, match="2 adapters but 3 weights"):
        Composition("c", experts(2), ConstantGates((1.0, 1.0, 1.0)))
    with pytest.raises(ValueError, match="finite"):
        ConstantGates((float("nan"),))
    with pytest.raises(ValueError, match="does not exist"):
        ConstantGates.one_hot(2, 2)
