"""Routers by scores against dense float64 and peft's Arrow, and decisions for whole prompts."""

import warnings

import composing
import making
import pytest
import torch
from composing import learnable
from gating import (
    DELTAS,
    FOUR,
    LIBRARY,
    MEANS,
    PATH,
    ROWS,
    STATE,
    Seen,
    X,
    arrows,
    composition,
    gates_of,
    of_whole_prompt,
    shared_out,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from making import hidden, peft_adapter, random_adapter, random_update
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from loraprobe.adapters import adapter_of, read_adapter
from loraprobe.composition import Composition, composed, prepared_layers
from loraprobe.errors import UsageError
from loraprobe.lora.lowrank import LowRank
from loraprobe.registry import name_of
from loraprobe.routing import ROUTERS
from loraprobe.routing.scored import Arrow, ByPrompt, Hard, ScoredRouter, prototype
from loraprobe.scoring.forward import tail_logits
from loraprobe.scoring.generation import generate_batch
from loraprobe.scoring.likelihood import Prefix

SCORED = [
    name_of(cls) for cls in ROUTERS if issubclass(cls, ScoredRouter | Hard) and cls != ByPrompt
]


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_centroid_is_a_cosine_with_the_mean_input(center, normalize):
    means = MEANS.float().double()
    common = means.mean(0) if center else torch.zeros(16, dtype=torch.float64)
    rows = []
    for x in X:
        own = x - common
        cosines = [own @ (c - common) / (c - common).norm() for c in means]
        rows.append(torch.stack(cosines) / (own.norm() if normalize else 1))
    found = gates_of(f"centroid:center={center},normalize={normalize},top_k=2")
    torch.testing.assert_close(found, shared_out(torch.stack(rows), 2, 0.1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("spec", ["hard:by=centroid", "centroid:top_k=4,temperature=0.01"])
def test_a_module_of_one_expert_adds_nothing_to_the_prompts_of_the_others(spec):
    elsewhere = random_adapter("elsewhere", {"other": (24, 16)}, seed=9, dtype=torch.float64)
    experts = (*FOUR[:3], elsewhere)
    state = {f"centroid.{path}": MEANS.float() for path in (PATH, "other")}
    router = ROUTERS.make(spec).with_state(state)
    layers = prepared_layers(Composition("c", experts, router), torch.float64)
    found = torch.cat([layer.gates(MEANS) for layer in layers], dim=-1)
    torch.testing.assert_close(found, torch.eye(4, dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("by", ["arrow", "centroid"])
def test_hard_gives_one_expert_everything(by):
    found = gates_of(f"hard:by={by}")
    assert torch.equal(found, gates_of(f"{by}:top_k=1"))
    assert sorted(set(found.flatten().tolist())) == [0.0, 1.0]


WRONG = "hard:by=hard hard:by=by_prompt hard:by=softest hard:top_k=2 "
WRONG += "arrow:per=row arrow:share=layer centroid:temperature=0 centroid:learned=1 "
WRONG += "arrow:top_k=0 arrow:temperature=nan arrow:k=2 constant:weights=0.5"


@pytest.mark.parametrize("spec", WRONG.split())
def test_wrong_options_are_refused(spec):
    with pytest.raises(UsageError):
        ROUTERS.make(spec)


def test_literal_options_are_checked_in_python_too():
    """Outside of the tests nothing checks the types of the fields."""
    router = ROUTERS.make("arrow")
    object.__setattr__(router, "per", "row")
    with pytest.raises(ValueError, match="per is one of token, sequence"):
        router.__post_init__()


def test_centroid_gives_no_gates_before_it_has_seen_prompts():
    for spec in ("centroid", "hard:by=centroid"):
        router = ROUTERS.make(spec)
        assert router.needs_prompts and not router.state()
        with pytest.raises(UsageError, match="--router-prompts NAME=FILE"):
            prepared_layers(Composition("c", tuple(FOUR), router), torch.float64)
    known = ROUTERS.make("centroid").with_state(STATE)
    assert not known.needs_prompts and known != ROUTERS.make("centroid")
    with pytest.raises(UsageError, match="nothing that fits the 5 adapters"):
        prepared_layers(Composition("c", (*FOUR, FOUR[0]), known), torch.float64)
    with pytest.raises(UsageError, match="learned nothing that fits"):
        other = random_adapter("o", making.LLAMA, dtype=torch.float64)
        prepared_layers(Composition("c", (*FOUR[:2], other, other), known), torch.float64)
    key = f"centroid.{PATH}"
    for wrong in ({}, {"x": MEANS}, {key: MEANS[0]}, {key: MEANS * float("nan")}):
        with pytest.raises(UsageError, match="stored state"):
            known.with_state(wrong)


# Decisions for a prompt.


@pytest.fixture(scope="module")
def model():
    return making.tiny_llama(tied=False).double()


def test_an_observer_learns_which_experts_a_module_has():
    model, path = making.tiny_llama(), "model.layers.0.self_attn.q_proj"
    first, *others = LIBRARY
    rest = {p: update for p, update in first.modules.items() if p != path}
    experts, seen = (making.adapter_of("first", rest), *others), {}
    with (
        torch.no_grad(),
        composed(
            model,
            composition("arrow", experts),
            lambda p, present, g: seen.update({p: (present, g.shape[-1])}),
        ),
    ):
        model(input_ids=torch.tensor(ROWS[:1]))
    n = len(experts)
    assert seen.pop(path) == (tuple(range(1, n)), n - 1)
    assert set(seen.values()) == {(tuple(range(n)), n)}


def test_a_prompt_is_decided_by_the_mean_of_its_tokens_scores(model):
    found, other, arrow, _ = of_whole_prompt(model, "arrow:per=sequence")
    wanted = shared_out(arrow[None], 3)[0]
    torch.testing.assert_close(found, wanted.expand(7, 3), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(other, wanted)


def test_a_prompt_chooses_by_all_modules_that_have_read_it(model):
    """Centroids against scores computed one module at a time; one expert lacks the MLPs."""
    paths = [path for path, module in model.named_modules() if path in LIBRARY[0].modules]
    generator = torch.Generator().manual_seed(8)
    means = {
        p: torch.randn(2, model.get_submodule(p).in_features, generator=generator) for p in paths
    }
    attention = {p: update for p, update in LIBRARY[0].modules.items() if "mlp" not in p}
    experts = (adapter_of("attention", attention), LIBRARY[1])
    router = ROUTERS.make("centroid:per=sequence").with_state(
        {f"centroid.{path}": mean for path, mean in means.items()}
    )
    seen, inputs = Seen(), {}
    hooks = [
        model.get_submodule(p).register_forward_hook(
            lambda m, x, y, p=p: inputs.update({p: x[0][0]})
        )
        for p in paths
    ]
    with torch.no_grad(), composed(model, Composition("c", experts, router), seen):
        model(input_ids=torch.tensor(ROWS[:1]), use_cache=False)
    for hook in hooks:
        hook.remove()
    scores = []
    for path, x in inputs.items():  # in the order of the pass
        middle = means[path].double().mean(0)
        rows = [
            torch.cosine_similarity(x - middle, m - middle, dim=-1) for m in means[path].double()
        ]
        scores.append(torch.stack(rows, dim=-1).mean(0))
        wanted = (torch.stack(scores).mean(0) / 0.1).softmax(-1)
        found = seen.gates[path][0][0, 0]
        torch.testing.assert_close(found, wanted[-len(found) :], rtol=1e-6, atol=1e-6)
    assert {len(gates[0][0, 0]) for gates in seen.gates.values()} == {1, 2}


def generated(model, tokens):
    """New tokens of ROWS, and the logits [rows, vocabulary] from which each of them came."""
    seen: list[Tensor] = []
    hook = model.register_forward_hook(lambda _, args, out: seen.append(out.logits[:, -1].clone()))
    new = generate_batch(model, ROWS, pad=0, stops=[], max_new_tokens=tokens)
    hook.remove()
    return new, seen


@pytest.mark.parametrize("options", ["per=token", "per=sequence"])
@pytest.mark.parametrize("name", [one for one in SCORED if not ROUTERS.make(one).needs_prompts])
def test_generation_agrees_with_a_single_forward_pass(model, name, options):
    """Prompts of different lengths, padded on the left; then prompt and answer in one pass."""
    with torch.no_grad(), composed(model, composition(f"{name}:{options}")):
        new, seen = generated(model, 5)
        whole = tail_logits(
            model,
            [[*r, *n] for r, (n, _) in zip(ROWS, new, strict=True)],
            [len(r) - 1 for r in ROWS],
            0,
        )
        alone = [generate_batch(model, [row], pad=0, stops=[], max_new_tokens=5)[0] for row in ROWS]
    assert alone == new
    for i, logits in enumerate(whole):
        steps = torch.stack([step[i] for step in seen]).to(logits.dtype)
        torch.testing.assert_close(logits[:5], steps, rtol=1e-5, atol=1e-5)
    if "sequence" in options:  # and the decision matters: the answer in the mean changes it
        with torch.no_grad(), composed(model, composition(f"{name}:{options}")):
            ids = torch.tensor([[*ROWS[0], *new[0][0]]])
            other = model(input_ids=ids, use_cache=False).logits[0, len(ROWS[0]) - 1 :]
        if name == "arrow":
            assert float((other - whole[0]).abs().max()) > 1e-6


def test_prompts_read_once_lead_the_tails_that_follow_them(model):
    places, tails = [2, 0, 1, 0], [[1, 2], [3], [4, 5, 6], [7, 8]]
    with torch.no_grad(), composed(model, composition("arrow:per=sequence")):
        prefix = Prefix.read(model, ROWS, 0)
        apart = prefix.tails(places, tails, 0)
        again = prefix.tails(places[::-1], tails[::-1], 0)[::-1]
        rows = [ROWS[p] + tail for p, tail in zip(places, tails, strict=True)]
        whole = tail_logits(model, rows, [len(ROWS[p]) - 1 for p in places], 0)
    for one, other, logits in zip(apart, again, whole, strict=True):
        torch.testing.assert_close(one, logits[1:], rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", ["gpt2", "gemma"])
def test_other_models_keep_their_decisions_too(kind):
    """Conv1D layers; sliding windows, whose cache forgets tokens but not its length."""
    other = composing.base(kind, torch.float64)
    shapes, kinds = {}, {}
    for path, module in other.named_modules():
        if type(module).__name__ == "Conv1D":
            shapes[path], kinds[path] = tuple(module.weight.shape)[::-1], "conv1d"
        elif isinstance(module, torch.nn.Linear) and path != "lm_head":
            shapes[path] = tuple(module.weight.shape)
    three = [random_adapter(f"e{i}", shapes, 2, seed=i, kinds=kinds) for i in range(3)]
    with torch.no_grad(), composed(other, composition("arrow:per=sequence", three)):
        new, seen = generated(other, 4)
        whole = tail_logits(
            other,
            [[*r, *n] for r, (n, _) in zip(ROWS, new, strict=True)],
            [len(r) - 1 for r in ROWS],
            0,
        )
    for i, logits in enumerate(whole):
        steps = torch.stack([step[i] for step in seen]).to(logits.dtype)
        torch.testing.assert_close(logits[:4], steps, rtol=1e-5, atol=1e-5)


def test_a_head_does_not_decide_for_a_prompt(model):
    """It is shown the last token only, or those from the first answer on."""
    shapes = {**making.LLAMA, "lm_head": (40, 16)}
    three = [random_adapter(f"e{i}", shapes, 2 + i, seed=20 + i, scaling=0.3) for i in range(3)]
    whole = composed(model, composition("arrow:per=sequence", three))
    refused = pytest.raises(UsageError, match=r"lm_head.*per=token")
    with torch.no_grad(), whole, refused:
        generate_batch(model, ROWS, pad=0, stops=[], max_new_tokens=3)
    with torch.no_grad(), composed(model, composition("arrow", three)):
        assert generate_batch(model, ROWS, pad=0, stops=[], max_new_tokens=3)


def test_a_cache_that_is_not_the_last_prompts_is_refused(model):
    from transformers import DynamicCache

    with torch.no_grad(), composed(model, composition("arrow:per=sequence")):
        first = DynamicCache(config=model.config)
        model(input_ids=torch.tensor(ROWS[:1]), past_key_values=first, use_cache=True)
        second = DynamicCache(config=model.config)
        model(input_ids=torch.tensor([ROWS[1]]), past_key_values=second, use_cache=True)
        model(input_ids=torch.tensor([[1]]), past_key_values=second, use_cache=True)
        with pytest.raises(UsageError, match="per=token"):
            model(input_ids=torch.tensor([[1]]), past_key_values=first, use_cache=True)
        out = model(input_ids=torch.tensor([ROWS[1]]), use_cache=True)  # its own cache
        model(input_ids=torch.tensor([[1]]), past_key_values=out.past_key_values, use_cache=True)
        with pytest.raises(UsageError, match="attention mask"):
            mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
            model(input_ids=torch.tensor([ROWS[1]]), attention_mask=mask)


def test_gates_of_prompts_exist_only_in_a_pass(model):
    layer = prepared_layers(composition("arrow:per=sequence"), torch.float64)[0]
    with pytest.raises(UsageError, match="forward pass"):
        layer.gates(torch.zeros(1, 16, dtype=torch.float64))
    hooks = len(model._forward_pre_hooks), len(model._forward_hooks)
    composing = composed(model, composition("arrow:per=sequence"))
    with pytest.raises(IndexError), torch.no_grad(), composing:
        assert len(model._forward_pre_hooks) == hooks[0] + 1
        model(input_ids=torch.tensor([[10_000]]))
    assert (len(model._forward_pre_hooks), len(model._forward_hooks)) == hooks
    with pytest.raises(UsageError, match="forward pass"):  # also after a pass that failed
        layer.gates(torch.zeros(1, 16, dtype=torch.float64))


def test_an_input_whose_rows_are_mixed_up_is_refused(model):
    """As a mixture's experts see it: some tokens, one after the other."""
    from loraprobe.composition import forward_pass as passes

    x = torch.randn(5, 16, dtype=torch.float64)
    token = passes._NOW.set(passes.Pass(2, 3, None, True, {}))
    try:
        layers = prepared_layers(composition("arrow:per=sequence"), torch.float64)
        (gates,) = (layer.gates for layer in layers if layer.path.endswith("0.self_attn.q_proj"))
        flat = gates(torch.cat([x, x[:1]]))
        assert flat.shape == (6, 3)  # all tokens in their order are fine
        assert torch.equal(flat[0], flat[2]) and not torch.equal(flat[0], flat[3])
        with pytest.raises(UsageError, match="per=token"):
            gates(x)
    finally:
        passes._NOW.reset(token)


@given(
    name=st.sampled_from(SCORED),
    n=st.integers(2, 5),
    width=st.integers(3, 12),
    top_k=st.integers(1, 6),
    temperature=st.sampled_from([0.2, 1.0, float("inf")]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60)
def test_gates_are_shares_and_follow_their_experts(name, n, width, top_k, temperature, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    ranks = torch.randint(1, 5, (n,), generator=generator).tolist()
    updates = [random_update(5, width, r, seed + i, dtype=dtype) for i, r in enumerate(ranks)]
    options = {} if name == "hard" else {"top_k": top_k, "temperature": temperature}
    router = ROUTERS.get(name)(**options)
    means = torch.randn(n, width, generator=generator)
    order = torch.randperm(n, generator=generator).tolist()

    def gates(places: list[int], x: Tensor) -> Tensor:
        known = router
        if router.needs_prompts:
            known = router.with_state({"centroid.m": means[places]})
        return known.gates("m", [updates[i] for i in places], range(n), n)(x)

    x = torch.randn(2, 7, width, generator=generator).to(dtype)
    found = gates(list(range(n)), x)
    assert found.shape == (2, 7, n) and found.dtype == dtype and float(found.min()) >= 0
    torch.testing.assert_close(found.sum(-1), torch.ones(2, 7, dtype=dtype))
    most = 1 if name == "hard" else min(top_k, n)
    assert int((found > 0).sum(-1).max()) <= most
    torch.testing.assert_close(gates(order, x), found[..., order], rtol=1e-4, atol=1e-4)


def test_two_learnable_routers_are_not_one():
    one, other = learnable(0.3), learnable(0.3)
    assert one != other
    assert len({one, other, one}) == 2


def layer(adapters, router, dtype=torch.float64):
    return prepared_layers(Composition("c", tuple(adapters), router), dtype)[0]


@pytest.mark.parametrize("top_k", [1, 2, 4, 99])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("normalize", [False, True])
def test_arrow_is_its_definition(top_k, temperature, normalize):
    x = 2 * X
    scores = arrows(x / x.norm(dim=-1, keepdim=True) if normalize else x)
    outputs = torch.stack([x @ delta.T for delta in DELTAS], dim=1)  # [t, n, out]
    wanted = (shared_out(scores, top_k, temperature)[..., None] * outputs).sum(1)
    found = layer(FOUR, Arrow(top_k, temperature, normalize)).delta(x)
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
    three.append(FOUR[0])  # which has no embedding, and so no share of its gates
    (found,) = (
        layer
        for layer in prepared_layers(Composition("c", tuple(three), Arrow()), torch.float64)
        if layer.path == table
    )
    tokens = torch.arange(12).reshape(3, 4)
    mean = sum(expert.modules[table].delta() for expert in three[:2]) / 2
    torch.testing.assert_close(found.delta(tokens), mean.T[tokens])
