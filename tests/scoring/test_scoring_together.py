"""Systems side by side in the rows of one batch, and a model that is watched."""

from __future__ import annotations

import making
import pytest
import torch
from composing import alone, scene
from words import PAIRS, PROMPTS

from loraprobe.composition import Composition, RowGates, composed, watched
from loraprobe.errors import UsageError
from loraprobe.routing.arrow import Arrow
from loraprobe.scoring import read_texts, score_rows


@pytest.mark.parametrize("kind", ["llama", "gpt2", "embedded"])
@pytest.mark.parametrize("batch", [7, "auto"])
def test_candidates_in_rows_score_what_each_scores_alone(kind, batch):
    scorer, adapters = scene(kind, batch)
    candidates, gates = [(1.0, 0.0), (0.0, 0.5), (0.0, 0.0)], RowGates()
    with scorer.with_composition(Composition("rows", adapters, gates)):
        found = score_rows(scorer, PAIRS, candidates, gates.rows.set)
    for scores, (first, second) in zip(found, candidates, strict=True):
        one = alone(adapters, int(second > 0), max(first, second))
        with scorer.with_composition(one):
            wanted = [likely.logprob for likely in scorer.loglikelihood(PAIRS)]
        assert scores == pytest.approx(wanted, abs=1e-4)
    assert found[0] != found[1] != found[2]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_routed_gates_are_those_of_the_base_that_reads_the_same(kind):
    """The oracle records the base's inputs, then runs one adapter at the gates they call for."""
    scorer, adapters = scene(kind)
    router, ids = Arrow(), [1, 5, 8, 9, 12, 7]
    inputs: dict = {}
    both = Composition("both", adapters, router)

    def keep(path, x, output):
        inputs[path] = x.clone()

    with torch.no_grad(), watched(scorer.model, both.experts, keep):
        z0 = scorer.model(torch.tensor([ids])).logits[0]

    def gated(i):
        hooks = []
        for path in adapters[i].modules:
            present = [j for j, adapter in enumerate(adapters) if path in adapter.modules]
            updates = [adapters[j].modules[path] for j in present]
            gates = router.gates(path, updates, present, 2)
            gate = gates if isinstance(gates, torch.Tensor) else gates(inputs[path])
            own, delta = gate[..., present.index(i), None], adapters[i].modules[path].delta()

            def add(_, args, output, own=own, delta=delta):
                return output + own * (args[0] @ delta.T)

            hooks.append(scorer.model.get_submodule(path).register_forward_hook(add))
        with torch.no_grad():
            found = scorer.model(torch.tensor([ids])).logits[0]
        for hook in hooks:
            hook.remove()
        return found

    gates = RowGates(inner=router)
    rows = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    gates.rows.set(rows, torch.zeros(3, dtype=torch.long))
    with torch.no_grad(), composed(scorer.model, Composition("rows", adapters, gates)):
        found = scorer.model(torch.tensor([ids] * 3)).logits
    torch.testing.assert_close(found[0], z0, atol=1e-5, rtol=1e-5)
    for i in range(2):
        torch.testing.assert_close(found[i + 1], gated(i), atol=1e-4, rtol=1e-4)


def test_rows_flattened_with_their_tokens_keep_their_gates():
    _, adapters = scene("llama")
    path = "model.layers.0.mlp.up_proj"
    gates = RowGates(inner=Arrow())
    gates.rows.set(torch.tensor([[1.0, 0.0], [0.0, 0.5]]), torch.tensor([0, 0]))
    made = gates.gates(path, [a.modules[path] for a in adapters], [0, 1], 2)
    x = torch.randn(2, 3, 16)
    torch.testing.assert_close(made(x.reshape(6, 16)), made(x).reshape(6, 2))
    with pytest.raises(UsageError, match="2 rows"):
        made(torch.randn(3, 16))
    with pytest.raises(UsageError, match=r"Rows\.set"):
        RowGates().gates(path, [], [0], 2)(x)


def test_two_sets_of_rows_are_never_one():
    """Prepared layers are kept by composition, so an equal router would bring another's rows."""
    _, adapters = scene("llama")
    one, other = (Composition("rows", adapters, RowGates()) for _ in range(2))
    assert one != other


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
    # every token but each row's first; of a row that has no other, that one
    assert set(seen.values()) == {sum(max(1, len(row) - 1) for row in rows)}
    assert scorer.generate(PROMPTS, max_new_tokens=4) == before
    assert not any(m._forward_hooks for m in scorer.model.modules())
