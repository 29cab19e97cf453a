"""The order in which a library's adapters are asked when there is no time for all."""

import making
import pytest
import torch
from words import word_tokenizer

from loraprobe.composition.layers import input_of
from loraprobe.extensions.screen.effects import by_effect
from loraprobe.scoring import ModelScorer

QUERY, LAST = "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj"
EARLIER = "model.layers.0.mlp.down_proj"
FORMS = [["who ada", "the cy lives in"], ["ulm", "bo of the", "mayor"]]


def adapter(seed: int, scaling: float, *paths: str):
    shapes = {path: making.LLAMA[path] for path in paths}
    return making.random_adapter(f"a{seed}", shapes, seed=seed, scaling=scaling)


@pytest.fixture(scope="module")
def scorer():
    tokenizer = word_tokenizer()
    return ModelScorer(making.tiny_llama(vocab=len(tokenizer)), tokenizer)


@torch.no_grad()
def norms(scorer, form, one):
    """The mean norm of what an adapter adds at the last token, prompt by prompt, dense."""
    found, last = [], [path for path in one.layout if path in (QUERY, LAST)]
    for prompt in form:
        added = {}
        hooks = [
            scorer.model.get_submodule(path).register_forward_hook(
                lambda m, args, kwargs, out, p=path, to=added: to.update(
                    {p: one.modules[p].delta() @ input_of(args, kwargs)[0, -1]}
                ),
                with_kwargs=True,
            )
            for path in last or one.layout
        ]
        scorer.model(input_ids=torch.tensor([scorer.encoded_prompts([prompt])[0]]))
        for hook in hooks:
            hook.remove()
        parts = [part.flatten() for part in added.values()]
        found.append(float(torch.cat(parts).norm()) if parts else 0.0)
    return sum(found) / len(found)


def test_adapters_are_ordered_by_what_they_add_in_their_last_layer_and_forms_take_turns(scorer):
    adapters = [
        adapter(1, 0.1, QUERY, LAST),
        adapter(2, 1e3, EARLIER),
        adapter(3, 0.4, LAST),
        adapter(4, 0.2, QUERY),
        adapter(5, 0.3, QUERY, LAST, EARLIER),
        adapter(6, 0.05, QUERY, LAST),
    ]
    order = by_effect(scorer, FORMS, lambda: iter(adapters))
    assert sorted(order) == list(range(len(adapters))) and order[0] == 1
    places = []
    for form in FORMS:
        values = [norms(scorer, form, one) for one in adapters]
        best = sorted(range(len(values)), key=lambda at: -values[at])
        places.append([best.index(at) for at in range(len(values))])
    first = [min(of_one) for of_one in zip(*places, strict=True)]
    assert [first[at] for at in order] == sorted(first)


def test_adapters_without_a_low_rank_update_come_last_in_the_given_order(scorer):
    whole = [adapter(seed, 1.0) for seed in (1, 2)]
    assert by_effect(scorer, FORMS, lambda: iter(whole)) == [0, 1]
    assert by_effect(scorer, FORMS, lambda: iter([*whole, adapter(3, 0.1, LAST)])) == [2, 0, 1]


def test_an_adapter_that_adds_much_in_one_form_comes_before_one_that_adds_some_in_each(scorer):
    """Each of the first two adds most in its own form; the third is second in both."""
    inputs = []

    def keep(module, args, kwargs, output):
        inputs.append(input_of(args, kwargs)[0, -1].double())

    hook = scorer.model.get_submodule(QUERY).register_forward_hook(keep, with_kwargs=True)
    with torch.no_grad():
        for form in (["who ada"], ["ulm of"]):
            scorer.model(input_ids=torch.tensor([scorer.encoded_prompts(form)[0]]))
    hook.remove()
    x, y = inputs

    def along(name, direction):
        A = direction.float()[None]
        B = torch.ones(16, 1)
        return making.adapter_of(name, {QUERY: making.LowRank(A, B, 1.0)}, base_model="owner/base")

    def only(direction, other):
        return direction - other * (direction @ other) / (other @ other)

    own = [along("x", only(x, y)), along("y", only(y, x))]
    some = along("both", 0.1 * (only(x, y) + only(y, x)))
    order = by_effect(scorer, [["who ada"], ["ulm of"]], lambda: iter([some, *own]))
    assert set(order[:2]) == {1, 2}
