"""The theory on one layer: the store against the model, edits against dense algebra, ranks."""

import json
from dataclasses import replace

import pytest
import torch

from loraprobe.base.quiet import quiet
from loraprobe_lab import shipped_world
from loraprobe_lab.experiments import theory
from loraprobe_lab.experiments.theory import (
    CITY_QUESTION,
    SPOUSE_QUESTION,
    ChainKeys,
    FactStore,
    NewFacts,
)
from loraprobe_lab.training import Recipe, load_base
from loraprobe_lab.worlds.couples import FactSizes, make_facts

FACTS = make_facts(FactSizes(), 0)


@pytest.fixture(scope="module")
def store():
    with quiet():
        return FactStore.of(*load_base(shipped_world().base))


@pytest.fixture(scope="module")
def chains(store):
    return ChainKeys.of(store, FACTS.strangers[:12])


def random_matrix(rows, columns, seed=0):
    return torch.randn(
        rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )


# The store is the model


def test_the_store_answers_as_the_model_does(store):
    prompts = [link.fill(SPOUSE_QUESTION) for link in FACTS.familiar[:20]]
    asked = store.read(prompts)
    ids = torch.tensor(store.tokenizer(prompts)["input_ids"])
    with torch.no_grad():
        logits = store.model(ids).logits[:, -1]
    ours = store.logits(asked.before + asked.values)
    assert (ours - logits).abs().max() < 1e-3 * logits.abs().max()
    spouses = store.token([link.b for link in FACTS.familiar[:20]])
    assert (store.predicted(asked) == spouses).all(), "the base knows its own facts"


def test_an_edit_of_the_store_is_an_edit_of_the_weight(store, chains):
    edit = theory.exact_edit(chains.asked["hop1"].keys, chains.changes["hop1"])
    weight = store.model.model.layers[-1].mlp.down_proj.weight
    prompts = [link.fill(SPOUSE_QUESTION) for link in FACTS.strangers[:12]]
    kept = weight.detach().clone()
    with torch.no_grad():
        try:
            weight += edit.float()
            ids = torch.tensor(store.tokenizer(prompts)["input_ids"])
            said = store.model(ids).logits[:, -1].argmax(-1)
        finally:
            weight.copy_(kept)
    assert (said == chains.spouses).all()
    assert (said == store.predicted(chains.asked["hop1"], chains.asked["hop1"].keys @ edit.T)).all()


def test_the_target_is_the_least_that_makes_the_answer(store, chains):
    start = chains.asked["hop1"].before + chains.asked["hop1"].values
    change = chains.changes["hop1"]

    def sure(length):
        chances = store.logits(start + length * change).softmax(-1)
        return chances.gather(1, chains.spouses[:, None])[:, 0]

    assert (sure(1.0) >= 0.9 - 1e-6).all() and (sure(0.99) < 0.9).all()


# Edits


def test_a_rank_one_edit_is_exact_and_of_rank_one():
    keys, changes = random_matrix(3, 40), random_matrix(3, 20, 1)
    edit = torch.outer(changes[0], keys[0]) / keys[0].dot(keys[0])  # as the theory has it
    assert torch.allclose(edit @ keys[0], changes[0], atol=1e-12)
    assert theory.rank_of(edit) == 1
    by_dual = torch.outer(changes[0], theory.dual(keys)[0])
    assert torch.allclose(edit, by_dual, atol=1e-12)
    others = random_matrix(200, 40, 2) + 2.0
    sparing = theory.dual(keys, others)
    assert torch.allclose((sparing * keys).sum(-1), torch.ones(3).double(), atol=1e-12)
    assert (others @ sparing.T).pow(2).mean() < (others @ theory.dual(keys).T).pow(2).mean() / 2


def test_the_exact_edit_is_that_of_dense_algebra():
    keys, changes = random_matrix(7, 40), random_matrix(7, 20, 1)
    edit = theory.exact_edit(keys, changes)
    dense = changes.T @ torch.linalg.solve(keys @ keys.T, keys)  # R^T (K K^T)^-1 K
    assert torch.allclose(edit, dense, atol=1e-10)
    assert torch.allclose(keys @ edit.T, changes, atol=1e-10)
    assert theory.rank_of(edit) == theory.rank_of(changes) == 7


def test_the_rank_of_the_residual_is_needed_and_enough():
    keys = random_matrix(12, 40)
    changes = random_matrix(12, 3, 1) @ random_matrix(3, 20, 2)  # twelve facts, three directions
    assert theory.rank_of(changes) == 3 == theory.rank_of(theory.exact_edit(keys, changes))
    assert torch.allclose(keys @ theory.edit_of_rank(keys, changes, 3).T, changes, atol=1e-9)
    for rank in (1, 2):
        error = keys @ theory.edit_of_rank(keys, changes, rank).T - changes
        left = torch.linalg.svdvals(changes)[rank:].pow(2).sum()
        assert error.pow(2).sum() == pytest.approx(float(left)), "Eckart and Young's bound"
    assert theory.rank_of_energy(torch.diag(torch.tensor([10.0, 1.0, 0.01]).double())) == 1
    assert theory.rank_of_energy(torch.diag(torch.tensor([1.0, 1.0, 0.01]).double())) == 2


# Two hops


def test_both_hops_hold_and_the_composed_question_does_not(store, chains):
    rows = {row["system"]: row for row in theory.one_at_a_time(store, chains)}
    both = rows["edit A->B + edit B->C"]
    assert both["hop 1"] == both["hop 2"] == both["chain"] == 1
    assert both["composed"] <= 0.25 < rows["all three edits"]["composed"] == 1
    assert rows["no edit"]["hop 1"] == 0
    together = {row["system"]: row for row in theory.all_at_once(store, chains)}
    assert together["one edit of both"]["chain"] == 1
    assert together["one edit of both"]["composed"] <= 0.25
    assert together["one edit of both, and A->C"]["composed"] == 1


def test_the_second_key_is_absent_until_the_first_answer_is_there(chains):
    asked, again, told, anew = theory.key_cosines(chains)
    assert asked["own"] == pytest.approx(asked["others"], abs=0.05)
    assert again["own"] > again["others"] + 0.15 and told["own"] > told["others"] + 0.15
    assert anew["own"] == pytest.approx(1) and anew["nearest is own"] == 1


# Facts per rank


def new_facts(store, count):
    people = [link.a for link in FACTS.strangers[:count]]
    names = [link.a for link in FACTS.familiar[:count]]
    return NewFacts.of(store, [SPOUSE_QUESTION.format(a=name) for name in people], names)


def test_the_bound_counts_directions_of_answers(store):
    known = (store.read(["Count:"]), store.token(["one"]))
    (row,) = theory.bound(store, new_facts(store, 9), "own", (9,), (1, 9), known)
    assert row["residual rank"] == row["edit rank"] == 9 and row["error"] < 1e-9
    assert row["recalled"][9] == 1 > row["recalled"][1]
    people = [link.b for link in FACTS.strangers[:9]]
    cities = [FACTS.cities[i % 3] for i in range(9)]
    homes = NewFacts.of(store, [CITY_QUESTION.format(b=name) for name in people], cities)
    (row,) = theory.bound(store, homes, "shared", (9,), (3,), known)
    assert row["residual rank"] == 3 and row["recalled"][3] == 1


def test_training_in_the_layer_learns_and_leaves_the_base(store):
    before = {name: p.detach().clone() for name, p in store.model.named_parameters()}
    training = Recipe(steps=60, batch_size=8, learning_rate=1e-2)
    row = theory.train(store, new_facts(store, 8), "mlp", 4, training, 0)
    assert row["recalled"] == 1 and row["facts"] == 8
    assert row["parameters"] == 4 * 3 * (160 + 400)
    idle = theory.train(store, new_facts(store, 8), "mlp", 4, replace(training, steps=0), 0)
    assert idle["recalled"] == 0, "nothing is recalled without training"
    everywhere = replace(training, steps=25)
    row = theory.train(store, new_facts(store, 4), "all layers", 2, everywhere, 0)
    assert row["recalled"] > 0.5 and row["place"] == "all layers"
    after = dict(store.model.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], kept) for name, kept in before.items())


# The document


def test_page_and_figure_hold_what_was_found(tmp_path):
    plan = theory.TheoryPlan(
        alone=3,
        together=(5,),
        bound=(5, 8),
        approximations=(1, 4),
        runs=(("mlp", 5, 1), ("mlp", 5, 2)),
        training=Recipe(steps=3, learning_rate=1e-2),
    )
    page, numbers, figure = theory.theory(plan).write(tmp_path).files(tmp_path)
    text = page.read_text()
    assert (page.name, numbers.name, figure.name) == ("theory.md", "theory.json", "theory.svg")
    again = theory.theory_pages(json.loads(numbers.read_text()))
    assert text == again.markdown, "the page can be made from its numbers"
    assert "| own answers | 8 | 8 | 8 |" in text
    assert "**the MLP of the last layer**" in text and "all linear layers" not in text
    assert text.count("- **") >= 7
    assert figure.read_text().startswith("<?xml")
