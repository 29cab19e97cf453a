"""Stacked parameters (target_parameters) in a model: as peft runs them, and what is refused."""

import re

import pytest
import torch
from composing import learnable, refused
from merges import merge
from mixtures import BOTH, CASES, IN, Layers, deltas_of_peft, saved, wrapped
from torch import nn

from loraprobe.composition import Composition, composed
from loraprobe.errors import CompatibilityError, UnsupportedAdapter
from loraprobe.routing import ROUTERS
from loraprobe.routing.constant import ConstantGates

X = torch.linspace(-1, 1, 4 * IN).reshape(4, IN)


def output(model, x=X):
    with torch.no_grad():
        return model(x)


def pair(tmp_path, case, transposed=False):
    """Two adapters of unequal rank, and the models as peft wraps them."""
    models = [wrapped(CASES[case], transposed), wrapped(CASES[case], transposed, 2, r=3)]
    return [saved(tmp_path / n, m) for n, m in zip("ab", models, strict=True)], models


def close(found, wanted):
    """Equal up to float32's rounding of sums as large as the largest output."""
    tolerance = 1e-5 * wanted.abs().max().item()
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_gates_weigh_the_deltas_and_equal_a_linear_merge(tmp_path, case, transposed):
    adapters, models = pair(tmp_path, case, transposed)
    base, gates = Layers(transposed).eval(), (0.7, -0.4)
    wanted = Layers(transposed).eval()
    for model, gate in zip(models, gates, strict=True):
        for name, delta in deltas_of_peft(model).items():
            parameter = wanted.get_parameter(
                name if name.rpartition(".")[2] in ("up", "down", "weight") else f"{name}.weight"
            )
            with torch.no_grad():
                turned = transposed and parameter.dim() == 3
                parameter += gate * (delta.mT if turned else delta).reshape(parameter.shape)
    with composed(base, Composition("c", tuple(adapters), ConstantGates(gates))):
        close(output(base), output(wanted))
    merged = merge(adapters, "task_arithmetic", weights=gates).adapter
    with composed(base, Composition("m", (merged,), ConstantGates())):
        close(output(base), output(wanted))


def test_after_an_exception_the_model_is_as_before(tmp_path):
    adapters, _ = pair(tmp_path, "two parameters of a module")
    base = Layers().eval()
    plain = output(base)
    with composed(base, Composition("c", tuple(adapters), ConstantGates())):
        with pytest.raises(RuntimeError):
            output(base, torch.ones(4, IN + 1))
        hook = base.layers[1].experts.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            output(base)
        hook.remove()
        down = base.layers[1].experts.down
        assert down.requires_grad and not torch.equal(output(base), plain)
    assert torch.equal(output(base), plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_of_the_parameter_is_kept(tmp_path, dtype):
    """bfloat16: within the rounding of the weights themselves."""
    adapters, models = pair(tmp_path, "two parameters of a module")
    base = Layers().eval().to(dtype)
    with composed(base, Composition("c", tuple(adapters), ConstantGates.one_hot(1, 2))):
        found = output(base, X.to(dtype))
    wanted = output(models[1].to(dtype), X.to(dtype))
    assert found.dtype == dtype
    scale = wanted.abs().max().item()
    tolerance = {torch.float64: 1e-6, torch.bfloat16: 8 * 2**-8}[dtype] * scale
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("router", [ROUTERS.make("arrow"), learnable(0.5, 0.5)])
def test_other_gates_are_refused_by_name_with_the_cure(tmp_path, router):
    adapters, _ = pair(tmp_path, "one parameter")
    base = Layers().eval()
    refused(
        UnsupportedAdapter,
        r"a changes layers\.0\.experts\.down .*constant",
        base,
        Composition("c", tuple(adapters), router),
    )
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in base.modules())


def smaller(model):
    experts = model.layers[1].experts
    experts.down = nn.Parameter(experts.down.detach()[:2])


def narrower(model):
    experts = model.layers[1].experts
    experts.down = nn.Parameter(experts.down.detach()[:, :, :3])


def absent(model):
    model.layers[1].experts = nn.Linear(IN, IN)


def quantised(model):
    experts = model.layers[1].experts
    experts.down = nn.Parameter(experts.down.detach().to(torch.int8), requires_grad=False)


def away(model):
    model.layers[1].experts.to("meta")


@pytest.mark.parametrize(
    "change, error, words",
    [
        (
            smaller,
            CompatibilityError,
            "[3, 12, 10] (experts, outputs, inputs), which the model has as [2",
        ),
        (narrower, CompatibilityError, "which the model has as [3, 12, 3]"),
        (absent, CompatibilityError, "down of layers.1.experts as [3, 12, 10]"),
        (quantised, UnsupportedAdapter, "layers.1.experts.down itself, which the model holds quan"),
        (away, UnsupportedAdapter, "layers.1.experts.down itself, which the model holds quan"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_by_name(tmp_path, change, error, words):
    adapters, _ = pair(tmp_path, "one parameter")
    base = Layers().eval()
    change(base)
    refused(error, re.escape(words), base, Composition("c", tuple(adapters), ConstantGates()))


def test_adapters_with_other_parameters_under_the_same_keys_are_refused(tmp_path):
    one = saved(tmp_path / "one", wrapped({"target_parameters": BOTH[:1]}))
    other = saved(tmp_path / "other", wrapped({"target_parameters": BOTH[1:]}))
    refused(
        CompatibilityError,
        r"targets .*down where another adapter .*up",
        Layers().eval(),
        Composition("c", (one, other), ConstantGates()),
    )
