"""Experts on convolutions: as peft runs them, scaled or not, and what is refused."""

import warnings

import pytest
import torch
from composing import learnable, refused, relative
from making import peft_model
from torch import nn

from loraprobe.adapters import adapter_of, read_adapter
from loraprobe.composition import Composition, composed
from loraprobe.errors import CompatibilityError, UnsupportedAdapter
from loraprobe.routing.constant import ConstantGates
from loraprobe.routing.spectral import Arrow


class Convolutional(nn.Module):
    """Two convolutions and a head, as audio and vision encoders begin."""

    def __init__(self, dimensions: int, **options) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
        self.first = layer(3, 8, 3, padding=1, **options)
        self.second = layer(8, 6, 2, stride=2, bias=False)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        h = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.head(h.flatten(2).mean(-1))


def trained(directory, dimensions, seed=1, **config):
    """An adapter on both convolutions and the head, as peft writes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft_model(
            Convolutional(dimensions),
            seed,
            task_type=None,
            r=2,
            target_modules=["first", "second", "head"],
            **config,
        )
        model.save_pretrained(str(directory))
    return read_adapter(directory), model


def only_first(adapter):
    """The same adapter without its other modules."""
    path = "first"
    return adapter_of(
        adapter.name,
        {path: adapter.modules[path]},
        kinds={path: "convolution"},
        kernels={path: adapter.layout[path].kernel},
        magnitudes={p: m for p, m in adapter.magnitudes.items() if p == path},
    )


def test_learnable_gates_and_token_routers(tmp_path):
    pair = tuple(trained(tmp_path / str(i), 2, seed=i, use_dora=i == 1)[0] for i in range(2))
    model = Convolutional(2)
    x = torch.randn(3, 3, 6, 6)
    for gates in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)):
        with composed(model, Composition("learn", pair, learnable(*gates))):
            found = model(x)
        with composed(model, Composition("one", pair, ConstantGates(gates))):
            assert relative(found, model(x)) < 1e-5
    arrow = Composition("arrow", pair, Arrow())
    assert any("convolutions (first, second)" in note for note in arrow.notes())
    alone = nn.ModuleDict({"first": model.first})
    pair = tuple(only_first(adapter) for adapter in pair)
    with composed(alone, Composition("arrow", pair, Arrow())):
        found = model.first(x)
    with composed(alone, Composition("half", pair, ConstantGates())):
        assert relative(found, model.first(x)) < 1e-6


@pytest.mark.parametrize(
    ("options", "what"),
    [({"dilation": 2}, "dilation"), ({"padding_mode": "circular"}, "padding_mode")],
)
def test_convolutions_of_other_kinds_are_refused_by_name(tmp_path, options, what):
    adapter, _ = trained(tmp_path / "a", 2)
    composition = Composition("c", (adapter,), ConstantGates())
    refused(
        UnsupportedAdapter, rf"a changes first.*{what}", Convolutional(2, **options), composition
    )


def test_another_kernel_is_named(tmp_path):
    adapter, _ = trained(tmp_path / "a", 2)
    model = Convolutional(2)
    model.first = nn.Conv2d(9, 8, 1)
    refused(
        CompatibilityError,
        r"a fits first with a kernel of \[3, 3\].*\[1, 1\]",
        model,
        Composition("c", (adapter,), ConstantGates()),
    )
