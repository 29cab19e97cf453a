"""What experts add is written over the layer's own output, except where a gradient needs both."""

import pytest
import torch
from making import random_update
from torch import nn

from loraprobe.adapters import adapter_of
from loraprobe.composition import Composition, composed
from loraprobe.routing.constant import ConstantGates
from loraprobe.routing.scored import Arrow

ROUTERS = [ConstantGates((0.5, -2.0)), Arrow(top_k=1), Arrow()]


class Model(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(12, 9, dtype=dtype).requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def experts():
    return tuple(adapter_of(f"e{i}", {"layer": random_update(9, 12, 3, i, 2.0)}) for i in range(2))


def by_hand(model: Model, router, x: torch.Tensor) -> torch.Tensor:
    """W x + b and, expert by expert, gate times delta."""
    updates = [e.modules["layer"] for e in experts()]
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
@pytest.mark.parametrize("router", ROUTERS, ids=repr)
def test_the_output_of_the_layer_is_reused(dtype, router):
    model, x = Model(dtype), torch.randn(2, 5, 12).to(dtype)
    before, places = x.clone(), []
    model.layer.register_forward_hook(lambda m, a, out: places.append(out.data_ptr()))
    expected = by_hand(model, router, x)
    with torch.no_grad(), composed(model, Composition("c", experts(), router)):
        found = model(x)
    assert found.data_ptr() == places[0] and found.dtype is dtype
    bound = 1e-5 if dtype is torch.float32 else 1e-2
    torch.testing.assert_close(found.float(), expected, rtol=bound, atol=bound)
    assert torch.equal(x, before)


def test_an_output_that_is_no_plain_memory_is_added_to():
    """A layer that gives a transposed view: nothing can be written over it as a matrix."""
    model, x = Model(torch.float32), torch.randn(2, 5, 12)
    model.layer.register_forward_hook(lambda m, a, out: out.mT.contiguous().mT)
    expected = by_hand(model, ROUTERS[0], x)
    with torch.no_grad(), composed(model, Composition("c", experts(), ROUTERS[0])):
        torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
