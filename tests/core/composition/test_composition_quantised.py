"""DoRA experts on bases whose weights are not at hand as they are: quantised, or out of memory."""

import copy

import making
import pytest
import torch
from composing import dora, refused, relative
from making import hidden
from torch import nn

from loraprobe.adapters import adapter_of
from loraprobe.composition import Composition, composed
from loraprobe.composition.dora import dense_weight
from loraprobe.errors import UnsupportedAdapter
from loraprobe.routing.constant import ConstantGates

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
