"""The loss by whose gates it is differentiated, and a model that is watched."""

from __future__ import annotations

import making
import pytest
from composing import learnable, scene
from words import PAIRS, PROMPTS

from loraprobe.composition import Composition, watched
from loraprobe.routing.constant import ConstantGates
from loraprobe.scoring import loss_with_gradients, read_texts


@pytest.mark.parametrize("kind", ["llama", "gpt2", "embedded"])
@pytest.mark.parametrize("batch", [1, 7, "auto"])
def test_the_loss_of_answers_and_its_slopes(kind, batch):
    """Of the likeliest answer of each item, by the token; slopes by differences of the loss."""
    scorer, adapters = scene(kind, batch)
    scorer.model.double()
    items = [PAIRS[:2], PAIRS[2:3], PAIRS[3:]]
    shares = [0.5, 0.25, 0.25]

    def loss(*gates: float) -> float:
        with scorer.with_composition(Composition("c", adapters, ConstantGates(gates))):
            likely = [scorer.loglikelihood(pairs) for pairs in items]
        best = (max(one.per_token for one in own) for own in likely)
        return -sum(share * one for share, one in zip(shares, best, strict=True))

    router, modes = learnable(0.7, 0.4), [m.training for m in scorer.model.modules()]
    with scorer.with_composition(Composition("learn", adapters, router)):
        found = loss_with_gradients(scorer, items, shares)
    assert found == pytest.approx(loss(0.7, 0.4), abs=1e-4)
    slopes = [loss(0.701, 0.4) - loss(0.699, 0.4), loss(0.7, 0.401) - loss(0.7, 0.399)]
    assert router.values.grad[0].tolist() == pytest.approx([s / 0.002 for s in slopes], rel=2e-2)
    assert all(parameter.grad is None for parameter in scorer.model.parameters())
    assert all(parameter.requires_grad for parameter in scorer.model.parameters())
    assert [m.training for m in scorer.model.modules()] == modes


def test_a_watched_model_says_what_it_says_and_is_left_as_it_was():
    scorer, adapters = scene("llama", 3)
    seen: dict[str, int] = {}
    masks = []
    before = scorer.generate(PROMPTS, max_new_tokens=4)

    def look(path, x, output):
        counted = masks[-1]
        assert x.shape[:2] == counted.shape == output.shape[:2]
        seen[path] = seen.get(path, 0) + int(counted.sum())

    with watched(scorer.model, adapters, look):
        read_texts(scorer, [*PROMPTS, "ada lives in ulm"], masks.append)
    assert set(seen) == set(making.LLAMA)
    rows = scorer.encoder.prompts([*dict.fromkeys(PROMPTS), "ada lives in ulm"])
    assert set(seen.values()) == {sum(map(len, rows))}
    assert scorer.generate(PROMPTS, max_new_tokens=4) == before
    assert not any(m._forward_hooks for m in scorer.model.modules())
