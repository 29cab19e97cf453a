"""Every kind of composition answers on a GPU as on the CPU, in every dtype."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import making
import pytest
import torch
from composing import EMBEDDED, GPT2, dora, experts, learnable, mixed_kinds, relative
from making import peft_adapter, random_adapter, sharpened
from merges import merge, takes
from mixtures import IN, Layers
from mixtures import saved as saved_parameters
from mixtures import wrapped as with_parameters
from words import PAIRS, PROMPTS, word_tokenizer

from loraprobe.adapters import Adapter, adapter_of, read_adapter
from loraprobe.composition import Composition, composed
from loraprobe.composition.router import Router
from loraprobe.merging import METHODS
from loraprobe.registry import name_of
from loraprobe.routing import ROUTERS
from loraprobe.routing.constant import ConstantGates
from loraprobe.scoring import ModelScorer
from loraprobe.scoring.model_scorer import loss_with_gradients

pytestmark = pytest.mark.gpu

# Relative distance of logits; 16-bit ones are rounded at every layer.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 4e-3}
CHOICES = [(prompt, choice) for prompt in PROMPTS for choice in ("bo", "cy lives", "ulm is the")]


class Case(NamedTuple):
    """A base, experts, and the router that weighs them."""

    model: Callable[[], Any]
    experts: Callable[[Path], Sequence[Adapter]]
    router: str | Router = "constant"


def llama(tied: bool = True):
    return sharpened(making.tiny_llama(tied=tied))


def of_llama(seed: int, **options: Any) -> Callable[[Path], Sequence[Adapter]]:
    """One adapter as peft saves it, beside a plain one."""

    def made(place: Path) -> Sequence[Adapter]:
        options.setdefault("target_modules", ["q_proj", "down_proj"])
        path = peft_adapter(place / "a", making.tiny_llama(tied=False), seed, scale=0.1, **options)
        return read_adapter(path), random_adapter("plain", seed=3, scaling=0.1)

    return made


def merged(name: str) -> Callable[[Path], Sequence[Adapter]]:
    """What a merge method makes of adapters of equal ranks."""

    def made(_: Path) -> Sequence[Adapter]:
        method, three = METHODS.make(name), [random_adapter(f"e{i}", seed=i) for i in range(3)]
        three = three if takes(method, 3) else three[:2]
        weights = (0.4,) * len(three)
        return (merge(three, method, weights=weights, seed=1).adapter,)

    return made


def stacked(transposed: bool, place: Path) -> Sequence[Adapter]:
    case = {"target_parameters": ["experts.up", "gate.weight"], "target_modules": ["proj"]}
    return [
        saved_parameters(place / str(seed), with_parameters(case, transposed, seed))
        for seed in range(2)
    ]


def conv1d(_: Path) -> Sequence[Adapter]:
    return experts(2, scaling=0.1, shapes=GPT2, kinds=dict.fromkeys(GPT2, "conv1d"))


def of_gpt2(place: Path) -> Sequence[Adapter]:
    config = {"target_modules": ["c_attn"], "bias": "all", "fan_in_fan_out": True}
    return [
        read_adapter(peft_adapter(place / str(seed), making.tiny_gpt2(), seed, scale=0.1, **config))
        for seed in range(2)
    ]


def embedded(_: Path) -> Sequence[Adapter]:
    kinds = {"model.embed_tokens": "embedding"}
    return experts(2, scaling=0.1, shapes=EMBEDDED, kinds=kinds)


def partly(_: Path) -> Sequence[Adapter]:
    """Three experts, of which the last lacks some modules."""
    *most, last = experts(3, scaling=0.1)
    return *most, adapter_of("partly", {p: last.modules[p] for p in list(last.modules)[:-3]})


def gpt2():
    return sharpened(making.tiny_gpt2())


plain, untied = llama, functools.partial(llama, False)
phi = functools.partial(making.tiny_model, "Phi3", pad_token_id=0)
FUSED = {f"model.layers.{i}.mlp.gate_up_proj": (48, 16) for i in range(2)}
GATED = {name_of(router): router for router in ROUTERS if not router.reads_text}
ROUTED = [
    *GATED,
    *("spectr:spectrum=flat,temperature=inf", "lag:preselect=2", "hard:by=centroid"),
    *(
        f"{name}:per=sequence"
        for name, router in GATED.items()
        if any(one.name == "per" and one.init for one in dataclasses.fields(router))
    ),
]
CASES = {
    **{f"router {spec}": Case(plain, partly, spec) for spec in ROUTED},
    **{f"merge {name}": Case(plain, merged(name)) for name in METHODS.names()},
    "dora": Case(plain, of_llama(1, use_dora=True)),
    "dora, routed": Case(plain, lambda _: (dora("dora", 1), *experts(2)), "arrow"),
    "rslora": Case(plain, of_llama(2, use_rslora=True, r=6), "arrow"),
    "bias of lora_B": Case(plain, of_llama(3, lora_bias=True), "arrow"),
    "trained biases": Case(gpt2, of_gpt2),
    "embedding": Case(plain, embedded),
    "embedding, routed": Case(plain, embedded, "arrow"),
    "whole modules": Case(untied, lambda _: mixed_kinds()),
    "whole modules, learned gates": Case(untied, lambda _: mixed_kinds(), learnable(0.2, 0.5, 0.5)),
    "modules_to_save": Case(untied, of_llama(4, modules_to_save=["lm_head"])),
    "token rows": Case(untied, of_llama(5, trainable_token_indices={"embed_tokens": [3, 7]})),
    "Conv1D": Case(gpt2, conv1d, "arrow"),
    "fused layers": Case(phi, lambda _: experts(2, scaling=0.1, shapes=FUSED)),
    "fused layers, routed": Case(phi, lambda _: experts(2, scaling=0.1, shapes=FUSED), "arrow"),
    "stacked parameters": Case(Layers, functools.partial(stacked, False)),
    "stacked parameters, turned": Case(
        functools.partial(Layers, True), functools.partial(stacked, True)
    ),
}


def answers(case: Case, place: Path, device: str, dtype: torch.dtype) -> dict[str, Any]:
    """Logits, log-likelihoods and texts of a base with a composition."""
    model, adapters = case.model().to(device, dtype), tuple(case.experts(place))
    router = ROUTERS.make(case.router) if isinstance(case.router, str) else case.router
    held = dict(model.named_parameters())
    if not hasattr(model, "config"):
        x = torch.randn((6, IN), generator=making.generator(0)).to(device, dtype)
        with torch.no_grad(), composed(model, Composition("c", adapters, router)):
            found = {"logits": model(x).float().cpu()}
    else:
        scorer = ModelScorer(model, word_tokenizer())
        if router.needs_prompts:
            prompts = {a.name: PROMPTS[i::3] for i, a in enumerate(adapters)}
            router = router.fit(scorer, adapters, prompts)
        with scorer.with_composition(Composition("c", adapters, router)):
            found = {"logits": scorer.first_token_distribution(PROMPTS)}
            likely = scorer.loglikelihood(CHOICES)
            found["likely"] = torch.tensor([one.logprob for one in likely])
            found["texts"] = scorer.generate(PROMPTS, max_new_tokens=4)
    assert all(parameter is held[name] for name, parameter in model.named_parameters())
    return found


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_composition_answers_as_on_the_cpu(tmp_path, device, name, dtype):
    found = answers(CASES[name], tmp_path / "gpu", device, dtype)
    wanted = answers(CASES[name], tmp_path / "cpu", "cpu", dtype)
    assert relative(found["logits"], wanted["logits"]) < TOLERANCES[dtype]
    if "texts" in wanted:
        assert relative(found["likely"], wanted["likely"]) < TOLERANCES[dtype]
        assert dtype is not torch.float32 or found["texts"] == wanted["texts"]


def test_16_bit_distributions_do_not_depend_on_the_batch_size(device):
    model = llama().to(device, torch.bfloat16)
    one, many = (
        ModelScorer(model, word_tokenizer(), batch_size=size).first_token_distribution(PROMPTS)
        for size in (1, 4)
    )
    assert relative(one, many) < 2**-7


@pytest.mark.parametrize("size", [1, 3, "auto"])
def test_batches_and_draws_are_those_of_the_cpu(device, size):
    found = {}
    for place in ("cpu", device):
        scorer = ModelScorer(llama().to(place), word_tokenizer(), batch_size=size)
        with scorer.with_composition(Composition("e0", experts(2), ConstantGates((1.0, 0.0)))):
            likely = [one.logprob for one in scorer.loglikelihood(PAIRS)]
        found[place] = (
            torch.tensor(likely),
            scorer.first_token_distribution(PROMPTS),
            len(scorer.sample(4, seed=1, max_new_tokens=3)),
        )
    for one, other in zip(found[device], found["cpu"], strict=True):
        assert one == other if isinstance(one, int) else relative(one, other) < 1e-3


def test_the_gradients_of_gates_are_those_of_the_cpu(device):
    found = {}
    for place in ("cpu", device):
        router = learnable(0.4, 0.3, 0.6)
        scorer = ModelScorer(llama(tied=False).to(place), word_tokenizer())
        with scorer.with_composition(Composition("c", mixed_kinds(), router)):
            loss = loss_with_gradients(scorer, [PAIRS[:3], PAIRS[3:6]], [0.5, 0.5])
        found[place] = torch.tensor([loss, *router.values.grad.flatten().tolist()])
    assert relative(found[device], found["cpu"]) < 1e-4


def test_layers_may_be_on_several_devices(two_devices):
    """As accelerate places them for --device-map auto."""
    from accelerate import dispatch_model

    first, second = two_devices
    found = {}
    for spread in (False, True):
        model = llama(tied=False)
        if spread:
            ends = {"model.embed_tokens": first, "model.norm": second, "lm_head": second}
            places = {"model.layers.0": first, "model.layers.1": second, "model.rotary_emb": first}
            model = dispatch_model(model, places | ends, force_hooks=True)
        scorer = ModelScorer(model, word_tokenizer())
        for spec in ("constant", "arrow", "arrow:per=sequence", "centroid:per=sequence"):
            router, three = ROUTERS.make(spec), experts(3, scaling=0.1)
            if router.needs_prompts:
                prompts = {e.name: PROMPTS[i::3] for i, e in enumerate(three)}
                router = router.fit(scorer, three, prompts)
            three = (*three, *(mixed_kinds() if router.constant else [dora("dora", 1)]))
            if spec.startswith("centroid"):
                three = three[:3]
            with scorer.with_composition(Composition("c", three, router)):
                likely = scorer.loglikelihood(PAIRS)
                texts = scorer.generate(PROMPTS, max_new_tokens=3)
            found[spec, spread] = torch.tensor([one.logprob for one in likely]), texts
    for spec in {spec for spec, _ in found}:
        (one, texts), (other, plain_texts) = found[spec, True], found[spec, False]
        assert relative(one, other) < 1e-4 and texts == plain_texts, spec
