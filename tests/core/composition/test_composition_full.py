"""Full experts: parameters replaced whole, by constant gates and row by row, and given back."""

import making
import pytest
import torch
from composing import dora, learnable, mixed_kinds, relative, state_of, with_changes
from making import hidden, random_adapter

from loraprobe.adapters import adapter_of
from loraprobe.composition import Composition, composed
from loraprobe.errors import CompatibilityError
from loraprobe.routing.constant import ConstantGates


@pytest.mark.parametrize("tied", [True, False])
def test_learnable_gates_are_constant_gates(tied):
    """Of all kinds of experts, also of whole parameters, which are mixed by their outputs."""
    model, three = making.tiny_llama(tied=tied).double(), mixed_kinds()
    tokens, before = torch.arange(7)[None] * 5 % 40, state_of(model)
    answers = []
    for gates in ((0.0, 0, 0), (1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0), (0.5, 0.25, 0.25)):
        learned = Composition("learn", three, learnable(*gates))
        with composed(model, learned), torch.no_grad():
            answers.append(model(input_ids=tokens).logits)
        assert state_of(model) == before
        with composed(model, Composition("c", three, ConstantGates(gates))), torch.no_grad():
            assert relative(answers[-1], model(input_ids=tokens).logits) < 1e-7
    assert relative(answers[0], answers[3]) > 0.1


@pytest.mark.parametrize("trained", [True, False])
def test_the_gradient_of_a_gate_is_the_slope(trained):
    """Also of a frozen base, whose first layers have no other gradient."""
    model, three = making.tiny_llama(tied=False).double(), mixed_kinds()
    model.requires_grad_(trained)
    tokens = torch.arange(7)[None] * 5 % 40

    def energy(*gates: float) -> tuple[torch.Tensor, torch.Tensor]:
        router = learnable(*gates)
        with composed(model, Composition("learn", three, router)):
            return model(input_ids=tokens).logits.square().sum(), router.values

    value, gates = energy(0.5, 0.25, 0.75)
    value.backward()
    for i in range(3):
        step = [1e-3 * (j == i) for j in range(3)]
        above, below = (
            energy(*(g + s * d for g, d in zip((0.5, 0.25, 0.75), step, strict=True)))[0]
            for s in (1, -1)
        )
        assert gates.grad[0, i].item() == pytest.approx((above - below).item() / 2e-3, rel=1e-3)


def test_a_module_whole_in_one_expert_and_scaled_in_another():
    model = making.tiny_llama(tied=False).double()
    scaled = dora("dora", 1, {"lm_head": (40, 16)})
    generator = torch.Generator().manual_seed(2)
    whole = {"lm_head.weight": torch.randn(40, 16, generator=generator)}
    headed = adapter_of("headed", dict(random_adapter(seed=3).modules), whole=whole)
    with composed(model, Composition("c", (scaled, headed), ConstantGates((0.6, 0.4)))):
        found = hidden(model)
    assert relative(found, with_changes(model, (scaled, headed), (0.6, 0.4))) < 1e-7


def test_whole_parameters_are_the_very_same_tensors_afterwards():
    model = making.tiny_llama()  # tied
    held = dict(model.named_parameters(remove_duplicate=False))
    headed = mixed_kinds()[2]
    composition = Composition("c", (headed,), ConstantGates((0.3,)))

    def check():
        now = dict(model.named_parameters(remove_duplicate=False))
        assert all(now[name] is held[name] for name in held)
        assert model.lm_head.weight is model.model.embed_tokens.weight

    with composed(model, composition):
        assert model.lm_head.weight is not model.model.embed_tokens.weight
        assert model.model.embed_tokens.weight is held["model.embed_tokens.weight"]
    check()
    with pytest.raises(ZeroDivisionError), composed(model, composition):
        raise ZeroDivisionError
    check()


@pytest.mark.parametrize("ensured", [False, True])
def test_tied_weights_change_together_only_where_peft_is_told_to_keep_ties(ensured):
    model = making.tiny_llama().double()
    generator = torch.Generator().manual_seed(1)
    whole = {"model.embed_tokens.weight": torch.randn(40, 16, generator=generator)}
    adapter = adapter_of("e", {}, whole=whole, config={"ensure_weight_tying": ensured})
    untied = making.tiny_llama(tied=False).double()
    untied.load_state_dict(model.state_dict())
    for name, tensor in (("model.embed_tokens.weight", True), ("lm_head.weight", ensured)):
        if tensor:
            untied.get_parameter(name).data = whole["model.embed_tokens.weight"].double()
    with composed(model, Composition("c", (adapter,), ConstantGates())):
        assert relative(hidden(model), hidden(untied)) < 1e-12


def test_an_expert_without_a_whole_module_counts_as_the_base():
    model = making.tiny_llama(tied=False).double()
    three = mixed_kinds()
    only = adapter_of("only", {}, whole={"lm_head.weight": three[2].whole["lm_head.weight"]})
    zero = adapter_of("zero", {p: u.scaled(0.0) for p, u in three[1].modules.items()})
    with composed(model, Composition("c", (only, zero), ConstantGates())):
        found = hidden(model)
    assert relative(found, with_changes(model, (only,), (0.5,))) < 1e-12


REFUSED = {
    "resized": ({"lm_head.weight": (44, 16)}, r"odd .*lm_head\.weight .*\[44, 16\].*\[40, 16\]"),
    "missing": ({"score.weight": (2, 16)}, r"odd .*score\.weight.*does not have"),
    "no-bias": ({"lm_head.bias": (40,)}, r"odd .*lm_head\.bias.*does not have"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_whole_modules_that_do_not_fit_are_named(case):
    shapes, message = REFUSED[case]
    whole = {name: torch.zeros(shape) for name, shape in shapes.items()}
    odd = adapter_of("odd", dict(random_adapter().modules), whole=whole)
    model = making.tiny_llama()
    before = state_of(model)
    with pytest.raises(CompatibilityError, match=message):
        Composition("c", (odd,), ConstantGates()).into(model).__enter__()
    assert state_of(model) == before
    with composed(model, Composition("c", (random_adapter(),), ConstantGates())):
        pass  # the refusal left the model free
