"""Systems side by side in the rows of one batch, and a model that is watched."""

from __future__ import annotations

import making
import pytest
import torch
from composing import alone, scene
from words import PAIRS, PROMPTS

from loraprobe.composition import Composition, RowGates, watched
from loraprobe.errors import UsageError
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


def test_rows_flattened_with_their_tokens_keep_their_gates():
    _, adapters = scene("llama")
    path = "model.layers.0.mlp.up_proj"
    gates = RowGates()
    gates.rows.set(torch.tensor([[1.0, 0.0], [0.0, 0.5]]))
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
    assert set(seen.values()) == {sum(map(len, rows))}
    assert scorer.generate(PROMPTS, max_new_tokens=4) == before
    assert not any(m._forward_hooks for m in scorer.model.modules())
