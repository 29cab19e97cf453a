"""The signals by which adapters are chosen without asking them, and what a choice keeps."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import PeftModel

from loraprobe.evaluation.plan import questions
from loraprobe.pipeline.ranking import BaselineScores, Ranking
from loraprobe.tasks import Hop, Item, Task
from loraprobe_lab.experiments.pairs import MergedBase
from loraprobe_lab.training import load_base
from loraprobe_lab.world import shipped_world

NAMES = ("newcomers", "steps")
PROMPTS = ("Who is the spouse of Sarum?", "Where does the spouse of Sarum live?")


@pytest.fixture(scope="module")
def retrieval():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        import retrieval

        yield retrieval


@pytest.fixture(scope="module")
def read(retrieval):
    """What the shipped base gives to its layers, and two of its adapters."""
    world = shipped_world()
    model, tokenizer = load_base(world.base)
    deltas = MergedBase(world).deltas
    inputs = retrieval.last_inputs(model, tokenizer, PROMPTS)
    return world, inputs, [deltas[name] for name in NAMES]


def test_norms_are_those_of_what_peft_adds_at_the_last_token(retrieval, read):
    world, inputs, deltas = read
    modules = sorted({module for one in deltas for module in one})
    found = retrieval.norms(inputs, deltas, modules)
    for row, name in enumerate(NAMES):
        model, tokenizer = load_base(world.base)
        wrapped = PeftModel.from_pretrained(model, str(world.adapters[name]))
        layers = {
            path.removeprefix("base_model.model."): layer
            for path, layer in wrapped.named_modules()
            if hasattr(layer, "lora_A")
        }
        update = sum(one.get_delta_weight("default").square().sum() for one in layers.values())
        assert retrieval.update_norms(deltas)[row] == pytest.approx(float(update.sqrt()), rel=1e-4)
        for column, prompt in enumerate(PROMPTS):
            taken = {}
            hooks = [
                one.register_forward_pre_hook(
                    lambda _, x, p=path, to=taken: to.update({p: x[0][0, -1]})
                )
                for path, one in layers.items()
            ]
            with wrapped.disable_adapter(), torch.no_grad():
                wrapped(**tokenizer(prompt, return_tensors="pt"))
            for hook in hooks:
                hook.remove()
            parts = [layers[p].get_delta_weight("default") @ taken[p] for p in layers]
            expected = torch.cat(parts).norm()
            assert found[row, column] == pytest.approx(float(expected), rel=1e-4)


def test_a_sharp_output_has_a_larger_inverse_entropy_than_a_flat_one(retrieval):
    inputs = {"q": torch.eye(2)}
    sharp, flat = torch.zeros(4, 2), torch.zeros(4, 2)
    sharp[0] = 3.0
    deltas = [{"q": (one, torch.eye(2))} for one in (sharp, flat)] + [{}]
    found = retrieval.inverse_entropies(inputs, deltas, "q")
    p = np.exp([3.0, 0, 0, 0]) / np.exp([3.0, 0, 0, 0]).sum()
    expected = [-1 / (p * np.log(p)).sum(), 1 / np.log(4), 0]
    np.testing.assert_allclose(found, np.array(expected)[:, None].repeat(2, 1), rtol=1e-5)


def test_the_adapter_whose_own_texts_are_the_prompt_is_the_most_similar(retrieval):
    def letters(texts):
        rows = np.array([[text.count(c) for c in "abc"] for text in texts], float)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    found = retrieval.similarities(letters, [["a", "a"], ["a", "b"], []], ["a", "b"])
    np.testing.assert_allclose(found, [[1, 0], [0.5**0.5, 0.5**0.5], [-1, -1]], atol=1e-12)


def test_own_texts_are_those_of_the_training(retrieval):
    from loraprobe_lab.worlds.library import library_world

    world = shipped_world()
    names = ["answers-00", "marriages-00"]
    trained = {one.name: one.examples for one in library_world(world.seed).training}
    for name, texts in zip(names, retrieval.given_texts(world, names), strict=True):
        assert len(set(texts)) == retrieval.TEXTS
        assert set(texts) <= {e.prompt or e.completion for e in trained[name]}


def test_hops_are_asked_with_the_right_answers_before_them(retrieval):
    hops = (Hop("Who is it?", ("Bo",)), Hop("Where is {1}?", ("Ulm",)))
    item = Item("1", "Where is who?", ("Ulm",), hops=hops, cot_prompt="Step by step?")
    assert retrieval.prompts_of(item) == ["Step by step?", "Who is it?", "Where is Bo?"]


N, ITEMS = 8, 40


def planted(retrieval, right):
    """A library of which an adapter answers item i if right[adapter, i]; a pair what both know."""
    from screen_quality import Seen

    items = tuple(Item(str(at), f"{at}?", ("x",)) for at in range(ITEMS))
    values = np.concatenate([np.zeros((1, ITEMS)), right]).astype(np.float32)
    known = BaselineScores(Task("t", items), {"question": values}, None)
    pairs = np.stack(np.triu_indices(N, 1), 1)
    together = np.maximum(right[pairs[:, 0]], right[pairs[:, 1]])
    return Seen(known, together, None, np.eye(N), pairs)


def test_halving_keeps_the_best_and_counts_what_was_asked(retrieval):
    right = np.zeros((N, ITEMS))
    right[6, ::2], right[3, 1::2] = 1, 1
    seen = planted(retrieval, right)
    order = np.arange(ITEMS)
    alone, passes = retrieval.halved(seen.on, order, lambda s, _: s.known.alone()[1:])
    assert alone.tolist() == [6]  # of two that answer as much the one of more answers so far
    assert passes == (8 * 5 + 4 * 5 + 2 * 10 + 1 * 20) / (N * ITEMS)

    def best_pair(some, kept):
        return retrieval.highest(some, retrieval.pair_scores(some), kept)

    assert retrieval.highest(seen, retrieval.pair_scores(seen)).tolist()[3] == 1.0
    assert set(retrieval.halved(seen.on, order, best_pair)[0]) <= {3, 6}


def test_screen_keeps_the_sets_whose_sums_answer_most(retrieval):
    """The forecast knows nothing here, and all pairs are tried."""
    from screen_quality import Truth

    names, rng = [str(k) for k in range(N)], np.random.default_rng(0)
    truth = Truth({frozenset(("3", "6")): 0.9, frozenset(("0", "1")): 0.1}, 0.1, 0.0)
    seen = planted(retrieval, np.zeros((N, ITEMS)))
    found = retrieval.as_screen(seen.on, np.arange(ITEMS), names, truth, rng)
    assert found["near"] == 1.0 and found["listed"] == 0.9 and found["asked"] == N
    assert found["passes"] == (N * 20 + 28 * 20) / (N * ITEMS)


def test_the_forms_of_a_question_take_turns_in_the_choice(retrieval):
    means = np.array([[[3.0], [0]], [[2], [1]], [[1], [2]], [[0], [3]]])
    found = retrieval.order_of(means, np.random.default_rng(0)).tolist()
    assert set(found[:2]) == {0, 3} and set(found[2:]) == {1, 2}


def test_a_choice_keeps_the_pairs_whose_members_are_both_kept(retrieval):
    from screen_quality import Truth

    names = [str(k) for k in range(N)]
    values = {frozenset(("0", "1")): 0.9, frozenset(("0", "2")): 0.6, frozenset(("3", "4")): 0.2}
    truth, seen = Truth(values, 0.1, 0.0), planted(retrieval, np.zeros((N, ITEMS)))
    scores = np.zeros(len(seen.pairs))
    found = retrieval.choice(seen, np.array([0, 2, 3]), names, truth, scores)
    assert found == {"best": 0.1, "value": 0.6, "near": 0.0, "listed": 0.6}
    whole = retrieval.choice(seen, np.arange(N), names, truth, scores)
    assert whole["best"] == 0.3 and whole["value"] == 0.9


def test_signals_rank_pairs_by_both_members_or_by_the_better_one(retrieval):
    import dataclasses

    from screen_quality import rankings_of

    signal = np.zeros((N, 3, ITEMS))
    signal[0, 0], signal[1, 0] = 1, 2  # the question
    signal[2, 1], signal[3, 2] = 1, 1  # each a hop
    seen = dataclasses.replace(planted(retrieval, np.zeros((N, ITEMS))), signals={"s": signal})
    rankings = rankings_of(seen)
    some = seen.on(np.array([3, 3, 7]))
    both, better = (rankings[f"s: {how}"](some) for how in ("both members", "the better member"))
    assert seen.pairs[both.argmax()].tolist() == [0, 1] and both.max() == 3
    assert seen.pairs[better.argmax()].tolist() == [2, 3] and better.max() == 1


def test_rankings_see_what_the_screen_forecasts(retrieval):
    from screen_quality import seen_of

    known = planted(retrieval, np.zeros((N, ITEMS))).known
    asked = questions([known.task])
    drawn = np.random.default_rng(0).random((N * (N - 1) // 2, ITEMS))
    forecast = SimpleNamespace(
        values=lambda pairs: (drawn, 0 * drawn), reading=SimpleNamespace(questions=asked)
    )
    names = [str(k) for k in range(N)]
    chosen = Ranking(names, [known], forecast)
    seen = seen_of(chosen, SimpleNamespace(compared=names[::-1], cosines=np.eye(N)))
    np.testing.assert_allclose(seen.forecast, drawn / 2, rtol=1e-6)
    assert seen.hops is None and seen.cosines.shape == (N, N)
