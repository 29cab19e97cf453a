"""The laws of routers, checked over every method of the registry.

What a router declares holds to 1e-9 in float64; what it does not declare is shown to fail, so that
no declaration is an excuse. f(experts)(x) is what the experts add to one layer's output:

identity           one expert is that expert: f([a])(x) = dW_a x
order              permuting the experts changes nothing
gauge              writing a delta in another basis (A -> G A, B -> B G^-1) changes nothing
homogeneity        f(c * experts) = c * f(experts)
linearity          f(experts)(x + y) = f(experts)(x) + f(experts)(y)
input_scale        f(experts)(c x) = c * f(experts)(x)
absent_is_zero     an expert without the module is one whose delta there is zero
absent_is_neutral  an expert without the module changes nothing for the others
"""

import pytest
import torch
from making import random_adapter, regauged
from torch import Tensor

from loraprobe.adapters import Adapter, adapter_of
from loraprobe.composition import Composition, prepared_layers
from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank
from loraprobe.routing import ROUTERS

PATH = "model.layers.0.mlp.up_proj"
# Those that decide for a whole prompt have gates only in a pass that reads one, or none at all.
OF_LAYERS = [name for name in ROUTERS.names() if name not in ("by_prompt", "by_text")]
RANKS = (2, 4, 3, 2)
GENERATOR = torch.Generator().manual_seed(11)
# Small, so that no softmax is so sharp that a law seems to hold which does not.
X, Y = (0.1 * torch.randn(12, 16, generator=GENERATOR, dtype=torch.float64) for _ in range(2))
EXPERTS = tuple(
    random_adapter(f"e{i}", {PATH: (24, 16)}, rank, seed=i, dtype=torch.float64)
    for i, rank in enumerate(RANKS)
)
PAIR = EXPERTS[:2]
ELSEWHERE = random_adapter(
    "elsewhere", {"model.layers.1.mlp.up_proj": (24, 16)}, seed=9, dtype=torch.float64
)
ZERO = random_adapter("zero", {PATH: (24, 16)}, scaling=0.0, dtype=torch.float64)


PROMPTS = {
    name: 0.1 * seed + 0.3 * torch.randn(6, 16, generator=torch.Generator().manual_seed(seed))
    for seed, name in enumerate([*(e.name for e in EXPERTS), "elsewhere", "zero"])
}  # what a module reads when the prompts of an adapter are read: [tokens, in]
PROMPTS["zero"] = PROMPTS["elsewhere"]  # two forms of one expert: without the module, zero there


def fitted(router, experts):
    """The router as it is after it has read planted prompts of these experts, if it needs any."""
    if not router.needs_prompts:
        return router
    paths = dict.fromkeys(path for expert in experts for path in expert.modules)
    means = torch.stack([PROMPTS[expert.name].mean(0) for expert in experts])
    return router.with_state({f"centroid.{path}": means for path in paths})


def f(router, experts, x: Tensor) -> Tensor:
    router = fitted(router, experts)
    layers = prepared_layers(Composition("c", tuple(experts), router), torch.float64)
    return next(layer for layer in layers if layer.path == PATH).delta(x)


def changed(change) -> list[Adapter]:
    return [adapter_of(e.name, {PATH: change(e.modules[PATH])}) for e in EXPERTS]


def scaled(update: LowRank) -> LowRank:
    return update.scaled(-2.5)


# law -> two things that it says are equal
LAWS = {
    "identity": lambda r: (f(r, EXPERTS[:1], X), X @ EXPERTS[0].modules[PATH].delta().T),
    "order": lambda r: (f(r, EXPERTS[::-1], X), f(r, EXPERTS, X)),
    "gauge": lambda r: (f(r, changed(regauged), X), f(r, EXPERTS, X)),
    "homogeneity": lambda r: (f(r, changed(scaled), X), -2.5 * f(r, EXPERTS, X)),
    "linearity": lambda r: (f(r, EXPERTS, X + Y), f(r, EXPERTS, X) + f(r, EXPERTS, Y)),
    "input_scale": lambda r: (f(r, EXPERTS, 3 * X), 3 * f(r, EXPERTS, X)),
    "absent_is_zero": lambda r: (f(r, [*PAIR, ELSEWHERE], X), f(r, [*PAIR, ZERO], X)),
    "absent_is_neutral": lambda r: (f(r, [*PAIR, ELSEWHERE], X), f(r, PAIR, X)),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", OF_LAYERS)
def test_declared_router_laws_hold_and_undeclared_ones_fail(name, law):
    router = ROUTERS.make(name)
    found, wanted = LAWS[law](router)
    error = float((found - wanted).norm() / wanted.norm())
    if law in router.laws:
        assert error <= 1e-9
    else:
        assert error >= 1e-3


@pytest.mark.parametrize("name", [n for n in OF_LAYERS if n != "constant"])
def test_a_stored_state_is_restored_unchanged(name):
    router = fitted(ROUTERS.make(name), EXPERTS)
    again = ROUTERS.make(name).with_state(router.state())
    assert torch.equal(f(again, EXPERTS, X), f(router, EXPERTS, X))
    assert router.state().keys() == again.state().keys()
    with pytest.raises(UsageError):
        router.with_state({"something": torch.zeros(2)})


def test_normalised_arrow_does_not_depend_on_the_norm_of_x():
    found, wanted = LAWS["input_scale"](ROUTERS.make("arrow:normalize=true"))
    assert float((found - wanted).norm() / wanted.norm()) <= 1e-9
