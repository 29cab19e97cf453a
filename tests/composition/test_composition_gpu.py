"""Compositions and scoring on a GPU: factors and prototypes follow the model there."""

from __future__ import annotations

import making
import pytest
import torch
from composing import dora, experts, learnable, mixed_kinds, relative
from words import word_tokenizer

from loraprobe.composition import Composition, composed
from loraprobe.routing import ROUTERS
from loraprobe.scoring import Scorer

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
PROMPTS = ["ada lives in", "who is the mayor of ulm ?", "", "cy"]
PAIRS = [(prompt, choice) for prompt in PROMPTS for choice in ("bo", "cy lives", "ulm is the")]


@pytest.mark.parametrize("router", ["constant", "arrow"])
def test_a_model_on_the_gpu_answers_as_on_the_cpu(router):
    composition = Composition("c", experts(3), ROUTERS.make(router))
    found = {}
    for device in ("cpu", DEVICE):
        model = making.tiny_llama().to(device)
        scorer = Scorer(model, word_tokenizer())
        before = torch.cuda.memory_allocated() if device == "cuda" else 0
        with scorer.with_composition(composition):
            found[device] = scorer.first_token_distribution(PROMPTS)
            likely = scorer.loglikelihood(PAIRS)
        assert device == "cpu" or torch.cuda.memory_allocated() <= before + 2**21
        found[device, "pairs"] = torch.tensor([one.logprob for one in likely])
    assert relative(found[DEVICE], found["cpu"]) < 1e-4
    assert relative(found[DEVICE, "pairs"], found["cpu", "pairs"]) < 1e-4


@pytest.mark.parametrize("kind", ["scaled", "full", "learnable"])
def test_scaled_and_full_experts_follow_the_model(kind):
    found, three = {}, mixed_kinds()
    composition = {
        "scaled": Composition("c", (dora("dora", 1), *experts(2)), ROUTERS.make("arrow")),
        "full": Composition("c", three, ROUTERS.make("constant")),
        "learnable": Composition("c", three, learnable(0.2, 0.5, 0.5)),
    }[kind]
    for device in ("cpu", DEVICE):
        model = making.tiny_llama(tied=False).to(device)
        held = dict(model.named_parameters())
        tokens = torch.arange(14, device=device).reshape(2, 7)
        with composed(model, composition), torch.no_grad():
            found[device] = model(input_ids=tokens).logits.cpu()
        assert all(parameter is held[name] for name, parameter in model.named_parameters())
    assert relative(found[DEVICE], found["cpu"]) < 1e-4


def test_bf16_distributions_do_not_depend_on_the_batch_size():
    model = making.tiny_llama().to(DEVICE, torch.bfloat16)
    one, many = (Scorer(model, word_tokenizer(), batch_size=size) for size in (1, 4))
    a, b = (scorer.first_token_distribution(PROMPTS) for scorer in (one, many))
    assert relative(a, b) < 2**-7
