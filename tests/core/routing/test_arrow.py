"""Arrow against its own definition in dense float64, and against peft's where peft is right."""

import math
import warnings

import making
import pytest
import torch
from making import hidden, peft_adapter, random_adapter, random_update
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from loraprobe.adapters import Adapter, read_adapter
from loraprobe.composition import Composition, composed, prepared_layers
from loraprobe.lora.lowrank import LowRank
from loraprobe.routing.scored import Arrow, prototype

PATH = "model.layers.0.mlp.up_proj"  # 16 -> 24
ONE = {PATH: (24, 16)}


def experts(n: int, ranks=(2, 3, 4, 2, 3), dtype=torch.float64) -> tuple[Adapter, ...]:
    return tuple(random_adapter(f"e{i}", ONE, ranks[i], seed=i, dtype=dtype) for i in range(n))


def layer(adapters, router, dtype=torch.float64):
    return prepared_layers(Composition("c", tuple(adapters), router), dtype)[0]


def dense_arrow(adapters, x: Tensor, top_k: int, temperature: float, normalize: bool) -> Tensor:
    """Arrow token by token from dense deltas: x [t, in] -> [t, out]."""
    deltas = [a.modules[PATH].to(torch.float64).delta() for a in adapters]
    directions = [torch.linalg.svd(delta).Vh[0] for delta in deltas]
    out = []
    for token in x:
        unit = token / token.norm() if normalize else token
        scores = [float((unit @ v).abs()) for v in directions]
        chosen = sorted(range(len(scores)), key=lambda i: -scores[i])[:top_k]
        weights = {i: math.exp(scores[i] / temperature) for i in chosen}
        total = sum(weights.values())
        out.append(sum(weights[i] / total * (deltas[i] @ token) for i in chosen))
    return torch.stack(out)


@pytest.mark.parametrize("top_k", [1, 2, 4, 99])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("normalize", [False, True])
def test_arrow_is_its_definition(top_k, temperature, normalize):
    four = experts(4)
    x = torch.randn(9, 16, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * 2
    found = layer(four, Arrow(top_k, temperature, normalize)).delta(x)
    wanted = dense_arrow(four, x, top_k, temperature, normalize)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rank", [1, 4, 20])
def test_prototype_is_the_top_right_singular_vector(rank):
    update = random_update(24, 16, rank, seed=rank, dtype=torch.float64)
    exact = torch.linalg.svd(update.delta()).Vh[0]
    assert abs(float(prototype(update) @ exact)) == pytest.approx(1, abs=1e-12)


def test_an_expert_without_effect_has_the_zero_prototype():
    dead = LowRank(torch.randn(3, 16), torch.zeros(24, 3), 1.0)
    assert torch.equal(prototype(dead), torch.zeros(16))


def test_flat_spectrum_does_not_disturb_the_rest():
    flat = making.planted_pair(0.0, out=24, inp=16, path=PATH)[0]
    v = prototype(flat.modules[PATH])
    assert float((flat.modules[PATH].delta() @ v).norm()) == pytest.approx(3**-0.5)


@pytest.mark.parametrize("options", [{}, {"top_k": 1}, {"top_k": 2, "temperature": 0.2}])
def test_arrow_equals_pefts_given_equal_prototypes(tmp_path, options):
    """peft's prototypes come from 15 power iterations from a random start; put exact ones in."""
    from peft.tuners.lora import ArrowConfig, create_arrow_model

    config = {"target_modules": ["q_proj", "up_proj", "down_proj"], "r": 3}
    directories = [
        peft_adapter(tmp_path / f"e{i}", making.tiny_llama(), seed=i, **config) for i in range(3)
    ]
    adapters = [read_adapter(directory) for directory in directories]
    model = making.tiny_llama()
    with composed(model, Composition("arrow", tuple(adapters), Arrow(**options))):
        found = hidden(model)
    plain = hidden(model)
    theirs = {{"temperature": "router_temperature"}.get(k, k): v for k, v in options.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped = create_arrow_model(
            base_model=model,
            task_specific_adapter_paths=[str(directory) for directory in directories],
            arrow_config=ArrowConfig(**theirs),  # the same defaults, too
        ).eval()
        hidden(wrapped)  # builds peft's prototypes
    own = 0.0
    for path in adapters[0].modules:
        state = wrapped.base_model.model.get_submodule(path).lora_arrow["arrow_router"]
        exact = torch.stack([prototype(adapter.modules[path]) for adapter in adapters])
        own = max(own, float((1 - (state.prototypes * exact).sum(-1).abs()).max()))
        state.prototypes.copy_(exact)
    wanted = hidden(wrapped)
    assert float((plain - wanted).norm() / wanted.norm()) > 0.01
    assert float((found - wanted).norm() / wanted.norm()) <= 1e-5
    assert own > 1e-6  # which is why they were replaced


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation returns."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.entries = max(self.entries, tensor.numel())
        return result


def test_no_tensor_of_tokens_experts_and_outputs_exists():
    tokens, out, n = 32, 64, 4
    shapes = {PATH: (out, 16)}
    adapters = [random_adapter(f"e{i}", shapes, 2, seed=i) for i in range(n)]
    routed = layer(adapters, Arrow(), torch.float32)
    with Largest() as largest:
        routed.delta(torch.randn(tokens, 16))
    assert largest.entries == tokens * out  # the result itself


def test_embeddings_get_equal_constant_gates():
    table = "model.embed_tokens"
    options = {"kinds": {table: "embedding"}, "dtype": torch.float64}
    three = [random_adapter(f"e{i}", {table: (16, 40)}, 2 + i, i, **options) for i in range(2)]
    three.append(experts(1)[0])  # which has no embedding, and so no share of its gates
    (found,) = (
        layer
        for layer in prepared_layers(Composition("c", tuple(three), Arrow()), torch.float64)
        if layer.path == table
    )
    tokens = torch.arange(12).reshape(3, 4)
    mean = sum(expert.modules[table].delta() for expert in three[:2]) / 2
    torch.testing.assert_close(found.delta(tokens), mean.T[tokens])
