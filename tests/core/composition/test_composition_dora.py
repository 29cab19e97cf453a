"""Scaled and full experts: against dense float64 weights, whatever the gates look at."""

import copy
import gc
from fractions import Fraction
from operator import mul

import making
import pytest
import torch
from composing import (
    base,
    dense_change,
    dora,
    learnable,
    mixed_kinds,
    refused,
    relative,
    state_of,
    with_changes,
)
from making import hidden, random_adapter
from torch import nn

from loraprobe.adapters import adapter_of
from loraprobe.composition import Composition, attaching, composed, prepared_layers
from loraprobe.composition.dora import CANCELS, dense_weight, magnitude_ratio
from loraprobe.errors import CompatibilityError, UnsupportedAdapter
from loraprobe.lora.lowrank import LowRank
from loraprobe.routing.constant import ConstantGates
from loraprobe.routing.scored import Arrow


@pytest.mark.parametrize("gates", [(1 / 3,) * 3, (1.0, 1.0, 1.0), (0.7, -0.2, 0.4), (0, 0, 1)])
def test_mixed_kinds_under_constant_gates_are_the_dense_combination(gates):
    model, three = making.tiny_llama(tied=False).double(), mixed_kinds()
    before = state_of(model)
    with composed(model, Composition("c", three, ConstantGates(tuple(map(float, gates))))):
        found = hidden(model)
    assert state_of(model) == before
    wanted = with_changes(model, three, gates)
    assert relative(hidden(model), wanted) > 0.01
    assert relative(found, wanted) < 1e-7  # Llama's norms round to float32


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_token_gates_weigh_each_kind_for_itself(kind):
    """One layer, every token by its own gates: sum_i g_i(x) ((c_i - 1) W0 x + c_i s_i B_i A_i x)
    and the biases of B.
    """
    torch.manual_seed(0)
    layer = making.tiny_gpt2().transformer.h[0].mlp.c_fc if kind == "conv1d" else nn.Linear(16, 64)
    model = nn.ModuleDict({"fc": layer}).double()
    nn.init.normal_(layer.bias)
    shapes = {"fc": (64, 16)}
    plain = random_adapter("plain", shapes, rank=3, seed=9, kinds={"fc": kind})
    offset = torch.randn(64)
    biased = adapter_of("biased", dict(plain.modules), offsets={"fc": offset}, kinds={"fc": kind})
    three = dora("dora", 1, shapes, kinds={"fc": kind}), dora("other", 2, shapes), biased
    router = Arrow(top_k=2)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    with composed(model, Composition("arrow", three, router)):
        found = model["fc"](x)
        with torch.no_grad():  # written over the layer's output
            assert relative(model["fc"](x), found) < 1e-14
    updates = [expert.modules["fc"].to(torch.float64) for expert in three]
    gates = router.gates("fc", updates, [0, 1, 2], 3)(x)
    assert gates.shape == (2, 5, 3) and (gates.sum(-1) - 1).abs().max() < 1e-12
    W0 = layer.weight.detach().mT if kind == "conv1d" else layer.weight.detach()
    wanted = x @ W0.mT + layer.bias
    for j, expert in enumerate(three):
        change = x @ dense_change(expert, "fc", W0).mT
        if expert.offsets:
            change = change + float(expert.modules["fc"].scaling) * offset
        wanted = wanted + gates[..., j, None] * change
    assert relative(found, wanted) < 1e-12


def test_routers_see_the_low_rank_update_and_not_the_magnitude():
    expert = dora("dora", 1)
    stripped = adapter_of("plain", dict(expert.modules))
    partner, path = random_adapter("partner", seed=4), "model.layers.0.mlp.up_proj"
    x, found = torch.randn(3, 16), []
    for one in (expert, stripped):
        made = prepared_layers(
            Composition("c", (one, partner), Arrow()), torch.float32, base("llama")
        )
        found.append(next(layer for layer in made if layer.path == path).gates(x))
    assert torch.equal(*found)


def test_rows_without_a_direction_and_magnitudes_of_zero():
    torch.manual_seed(0)
    weight = torch.randn(6, 5, dtype=torch.float64)
    A, B = torch.randn(2, 5, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    weight[1], B[1] = 0, 0  # a pruned row, for which peft's own magnitude is 0: 0 / 0
    weight[2] = -(B[2] @ A) * (1 + 2**-52)  # a row that the update cancels up to rounding
    magnitude = torch.tensor([0.0, 0.0, 2.0, -1.0, 3.0, 1.0])
    c = magnitude_ratio(LowRank(A, B), magnitude, weight)
    assert c[0] == 0 and c[1] == 1 and c[2] == 1
    norm = (weight + B @ A).norm(dim=1)
    assert torch.allclose(c[3:], magnitude[3:].double() / norm[3:], rtol=1e-12, atol=0)
    model = nn.ModuleDict({"fc": nn.Linear(5, 6, bias=False)}).double()
    model["fc"].weight.data = weight
    expert = adapter_of("d", {"fc": LowRank(A, B)}, magnitudes={"fc": magnitude})
    x = torch.randn(4, 5, dtype=torch.float64)
    with composed(model, Composition("c", (expert,), ConstantGates())):
        found = model["fc"](x)
    terms = x.abs() @ (c.abs()[:, None] * (weight.abs() + B.abs() @ A.abs())).mT
    wanted = x @ (c[:, None] * (weight + B @ A)).mT
    assert not wanted[:, :2].any() and not found[:, :2].any()
    assert ((found - wanted).abs() <= 16 * torch.finfo(torch.float64).eps * terms).all()


def exact_row_norms(weight: torch.Tensor, B: torch.Tensor, A: torch.Tensor) -> torch.Tensor:
    """Row norms of W + B A, in rational arithmetic before the square root."""
    W, left, right = (
        [[Fraction(x) for x in row] for row in matrix.tolist()] for matrix in (weight, B, A.mT)
    )
    squares = [
        sum((w + sum(map(mul, b, a))) ** 2 for w, a in zip(row, right, strict=True))
        for row, b in zip(W, left, strict=True)
    ]
    return torch.tensor([float(square) for square in squares], dtype=torch.float64).sqrt()


def test_row_norms_keep_their_accuracy_where_the_update_nearly_cancels_the_weight(monkeypatch):
    """An error of n eps in each sum of n terms, times the condition of the row.

    The condition of W + B A is that of its sum. Inner products of W and B A have its square, so
    they are used only for rows that cancel little.
    """
    torch.manual_seed(0)
    A, B = torch.randn(3, 40, dtype=torch.float64), torch.randn(30, 3, dtype=torch.float64)
    rest = torch.randn(30, 40, dtype=torch.float64) * torch.logspace(-12, 0, 30).double()[:, None]
    weight = rest - B @ A
    magnitude, norms = torch.ones(30, dtype=torch.float64), exact_row_norms(weight, B, A)
    condition = (weight.norm(dim=1) + (B.abs() @ A.abs()).norm(dim=1)) / norms
    unit = (40 + 3) * torch.finfo(torch.float64).eps
    size = weight.square().sum(1) + (B @ A).square().sum(1)
    cancels = norms.square() < CANCELS * size
    allowed = unit * torch.where(cancels, condition, condition.square())
    monkeypatch.setattr("loraprobe.composition.dora.AT_ONCE", 7 * 40)  # and block by block
    found = magnitude_ratio(LowRank(A, B), magnitude, weight)
    assert ((found * norms - 1).abs() <= allowed).all()
    assert 5 < cancels.sum() < 25 and allowed.max() < 0.1
    inner = weight.square().sum(1) + 2 * (weight @ A.mT * B).sum(1) + (B @ A).square().sum(1)
    assert not ((inner.abs().sqrt() / norms - 1).abs() <= allowed).all()


def test_weights_that_cannot_be_read_are_named():
    model, expert = making.tiny_llama(), dora("dora", 1)
    layer = model.model.layers[0].self_attn.q_proj
    layer.weight = nn.Parameter(layer.weight.to(torch.float8_e4m3fn), requires_grad=False)
    refused(
        UnsupportedAdapter,
        r"dora needs the weight of .*q_proj.*unquantised",
        model,
        Composition("c", (expert,), ConstantGates()),
    )
    with composed(model, Composition("c", (expert, random_adapter()), ConstantGates((0.0, 1.0)))):
        pass  # an expert whose gate is 0 needs nothing


def test_preparation_follows_the_weights_of_the_model():
    expert = dora("dora", 1)
    composition = Composition("c", (expert,), ConstantGates.ones(1))
    one, other = making.tiny_llama(0), making.tiny_llama(1)

    def right(model):
        with composed(model, composition):
            found = hidden(model)
        return relative(found.double(), with_changes(model.double(), (expert,), (1.0,))) < 1e-5

    assert right(copy.deepcopy(one)) and right(copy.deepcopy(other))
    made = prepared_layers(composition, torch.float32, one)
    assert prepared_layers(composition, torch.float32, one) is made  # kept
    with torch.no_grad():
        one.model.layers[0].self_attn.q_proj.weight.mul_(3.0)
    assert prepared_layers(composition, torch.float32, one) is not made  # written to
    assert right(copy.deepcopy(one))
    one.model.layers[1].mlp.up_proj.weight = nn.Parameter(torch.randn(24, 16))
    assert right(one)
    assert len(attaching._PREPARED[composition]) <= 2  # one of each dtype, the newest
    del one, other
    gc.collect()
    assert right(making.tiny_llama(2))


NAMES = ("q_proj", "up_proj", "down_proj")


class Offering(nn.Module):
    """A quantised layer as HQQ and others have them: packed inside, `dequantize()` outside."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = float(linear.weight.detach().abs().max() / 127)
        self.register_buffer("W_q", (linear.weight / self.scale).round().to(torch.int8))

    def dequantize(self):
        return self.W_q.float() * self.scale

    def forward(self, x):
        return x @ self.dequantize().T


def four_bits(linear: nn.Linear) -> nn.Module:
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=False, compute_dtype=torch.float32
    )
    layer.weight = bnb.nn.Params4bit(linear.weight.data.clone(), requires_grad=False, module=layer)
    return layer.to("cpu")


def eight_bits(linear: nn.Linear) -> nn.Module:
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear8bitLt(
        linear.in_features, linear.out_features, bias=False, has_fp16_weights=False
    )
    weight = linear.weight.data.clone()
    layer.weight = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    return layer.to("cpu")


@pytest.mark.parametrize("quantise", [Offering, four_bits, eight_bits])
def test_a_quantised_base_is_its_dequantised_self(quantise):
    model = making.tiny_llama(tied=False)
    plain = copy.deepcopy(model)
    for path, module in list(model.named_modules()):
        if path.endswith(NAMES):
            layer = quantise(module)
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, layer)
            plain.get_submodule(path).weight.data = dense_weight(layer, path, "the test").float()
    expert = dora("dora", 1, {p: s for p, s in making.LLAMA.items() if p.endswith(NAMES)})
    composition = Composition("c", (expert,), ConstantGates.ones(1))
    for _ in range(2):  # a forward pass may rearrange what a layer holds
        with composed(model, composition):
            found = hidden(model)
        with composed(plain, composition):
            wanted = hidden(plain)
        assert relative(hidden(plain), wanted) > 0.01
        assert relative(found, wanted) < 1e-5


def test_a_base_that_accelerate_keeps_out_of_memory():
    from accelerate import cpu_offload

    plain = making.tiny_gpt2()
    torch.manual_seed(1)
    for name, parameter in plain.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    away = cpu_offload(copy.deepcopy(plain), execution_device=torch.device("cpu"))
    layer = away.transformer.h[0].mlp.c_fc
    assert layer.weight.device.type == layer.bias.device.type == "meta"
    shapes = {"transformer.h.0.mlp.c_fc": (64, 16), "transformer.h.1.mlp.c_proj": (16, 64)}
    composition = Composition("c", (dora("dora", 1, shapes),), ConstantGates.ones(1))
    with composed(plain, composition):
        wanted = hidden(plain)
    with composed(away, composition):
        found = hidden(away)
    assert relative(hidden(plain), wanted) > 0.01
    assert torch.equal(found, wanted)
    layer = away.transformer.h[0].mlp.c_fc
    assert layer.weight.device.type == layer.bias.device.type == "meta"
    headed = adapter_of("headed", {}, whole={"lm_head.weight": torch.zeros(40, 16)})
    refused(
        UnsupportedAdapter,
        r"headed replaces lm_head\.weight.*out of memory",
        away,
        Composition("c", (headed,), ConstantGates()),
    )


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
