"""Compositions in real models: against peft and dense float64 weights, and without a trace."""

import warnings

import making
import pytest
import torch
from composing import base, experts, refused, relative, state_of
from making import hidden, peft_adapter, random_adapter, random_update, write_adapter
from torch import nn

from loraprobe.adapters import Adapter, adapter_of, read_adapter
from loraprobe.composition import Composition, composed
from loraprobe.errors import CompatibilityError, UnsupportedAdapter, UsageError
from loraprobe.lora.lowrank import LowRank
from loraprobe.routing import ROUTERS
from loraprobe.routing.constant import ConstantGates
from loraprobe.routing.scored import Arrow

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


WRITING = [ConstantGates((0.5, -2.0)), Arrow(top_k=1), Arrow()]


class Model(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(12, 9, dtype=dtype).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def of_a_layer():
    return tuple(adapter_of(f"e{i}", {"layer": random_update(9, 12, 3, i, 2.0)}) for i in range(2))


def by_hand(model: Model, router, x: torch.Tensor) -> torch.Tensor:
    """W x + b and, expert by expert, gate times delta."""
    updates = [e.modules["layer"] for e in of_a_layer()]
    gates = router.gates("layer", updates, [0, 1], 2)
    gates = (
        gates.float().expand(*x.shape[:-1], 2)
        if isinstance(gates, torch.Tensor)
        else (gates(x.float()))
    )
    found = nn.functional.linear(x, model.layer.weight, model.layer.bias).float()
    for i, update in enumerate(updates):
        found = found + gates[..., i : i + 1] * (x.float() @ update.delta().mT)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("router", WRITING, ids=repr)
def test_the_output_of_the_layer_is_reused(dtype, router):
    model, x = Model(dtype), torch.randn(2, 5, 12).to(dtype)
    before, places = x.clone(), []
    model.layer.register_forward_hook(lambda m, a, out: places.append(out.data_ptr()))
    expected = by_hand(model, router, x)
    with torch.no_grad(), composed(model, Composition("c", of_a_layer(), router)):
        found = model(x)
    assert found.data_ptr() == places[0] and found.dtype is dtype
    bound = 1e-5 if dtype is torch.float32 else 1e-2
    torch.testing.assert_close(found.float(), expected, rtol=bound, atol=bound)
    assert torch.equal(x, before)


def test_an_output_that_is_no_plain_memory_is_added_to():
    """A layer that gives a transposed view: nothing can be written over it as a matrix."""
    model, x = Model(torch.float32), torch.randn(2, 5, 12)
    model.layer.register_forward_hook(lambda m, a, out: out.mT.contiguous().mT)
    expected = by_hand(model, WRITING[0], x)
    with torch.no_grad(), composed(model, Composition("c", of_a_layer(), WRITING[0])):
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
