"""Rankings of sets of adapters, finalists that differ, and the order in which adapters are asked
when there is no time for all."""

import itertools
from dataclasses import replace
from types import SimpleNamespace

import making
import numpy as np
import pytest
import torch
from words import word_tokenizer

from loraprobe.composition.layers import input_of
from loraprobe.extensions.screen.effects import by_effect
from loraprobe.extensions.screen.ranking import Ranking, TaskScores, choose, rank
from loraprobe.records import ItemPart, ItemResult
from loraprobe.scoring import ModelScorer
from loraprobe.tasks import Hop, Item, Task


def scored(*forms: dict, default=0.0):
    """A score by members; a set that is not named has that of its best named pair."""

    def score(subsets):
        return [np.array([value(form, tuple(one)) for one in subsets.tolist()]) for form in forms]

    def value(form, members):
        pairs = [form.get(pair, default) for pair in itertools.combinations(members, 2)]
        return form.get(members, max(pairs, default=default))

    return score


def test_all_pairs_are_ranked_and_sets_of_three_only_if_they_exceed_their_pairs():
    values = {(1, 4): 0.8, (0, 2): 0.7, (1, 3, 4): 0.95, (0, 2, 5): 0.75}
    (found,) = rank(6, scored(values))
    assert [members for members, _ in found.order[:3]] == [(1, 3, 4), (1, 4), (0, 2)]
    assert sorted(m for m, _ in found.order if len(m) == 2) == sorted(
        itertools.combinations(range(6), 2)
    )
    assert (0, 2, 5) not in [members for members, _ in found.order]  # it hardly exceeds (0, 2)
    assert found.looked_at == 15 + 20


def test_a_pair_that_adds_nothing_to_a_member_comes_after_all_that_do():
    values = {(0,): 0.9, (0, 1): 0.9, (0, 2): 0.91, (1, 2): 0.1, (0, 3): 0.95}
    (found,) = rank(4, scored(values))
    assert names([(0, m) for m, _ in found.order[:4]]) == [(0, 3), (1, 2), (0, 2), (0, 1)]
    assert found.order[2][1] == 0.91 and found.promises


def test_few_adapters_have_few_sets():
    assert rank(2, scored({(0, 1): 0.3}))[0].order == (((0, 1), 0.3),)


def names(found):
    return [members for _, members in found]


FROM_ONE = {(0, k): 0.9 - k / 100 for k in range(1, 8)}


@pytest.mark.parametrize(
    ("values", "families", "wanted"),
    [
        ([FROM_ONE | {(8, 9): 0.4, (7, 9): 0.3}], range(10), [(0, 1), (0, 2), (8, 9), (7, 9)]),
        (  # 1, 2 and 3 are relatives
            [{(0, 1): 0.9, (0, 2): 0.89, (0, 3): 0.88, (4, 5): 0.2}],
            [0, 7, 7, 7, 4, 5],
            [(0, 1), (4, 5)],
        ),
        ([{(0, 1): 0.9, (0, 2): 0.8, (1, 2): 0.7}], [0, 0, 0], [(0, 1), (0, 2), (1, 2)]),
        (  # each form gives finalists in turn
            [{(0, 1): 0.9, (0, 2): 0.8, (1, 2): 0.7}, {(3, 4): 0.2, (0, 1): 0.15, (4, 5): 0.1}],
            range(6),
            [(0, 1), (3, 4), (0, 2), (4, 5)],
        ),
        (  # a quarter is for sets of three
            [
                {(0, 1): 0.5, (2, 3): 0.4, (4, 5): 0.3, (6, 7): 0.2}
                | {(0, 1, 2): 0.9, (0, 1, 4): 0.89, (2, 3, 4): 0.8}
            ],
            range(8),
            [(0, 1, 2), (0, 1), (2, 3), (4, 5)],
        ),
    ],
    ids=["one good adapter", "relatives", "no others", "two forms", "larger sets"],
)
def test_finalists_differ(values, families, wanted):
    found = choose(rank(len(families), scored(*values)), 4, families)
    assert names(found)[: len(wanted)] == wanted


def test_places_are_those_of_the_ranking():
    rankings = rank(10, scored(FROM_ONE | {(8, 9): 0.4, (7, 9): 0.3}))
    assert [place for place, _ in choose(rankings, 4, range(10))] == [1, 2, 8, 9]


def test_a_form_that_promises_no_gain_gives_a_quarter():
    forms = {(0, 1): 0.5, (0, 2): 0.4, (1, 2): 0.3}, {(3, 4): 0.9, (3, 5): 0.8, (4, 5): 0.7}
    plain, steps = rank(6, scored(*forms), alone=0.5)
    assert (plain.promises, steps.promises) == (False, True)
    assert names(choose([plain, steps], 4, range(6))) == [(0, 1), (3, 4), (3, 5), (4, 5)]


def test_a_quarter_of_the_places_is_for_partners_of_the_best_single_adapter():
    """Wherever the forecast puts them; by the last ranking, which is step by step where asked."""
    values = {(a, b): 0.9 - (a + b) / 100 for a, b in itertools.combinations(range(8), 2)}
    values |= {(3, 9): 0.2, (8, 9): 0.1}
    rankings = rank(10, scored({}, values))
    for keep, wanted in ((8, [(3, 9), (8, 9)]), (4, [(3, 9)]), (3, [])):
        found = choose(rankings[1:], keep, range(10), leader=9)
        assert [one for one in names(found) if 9 in one] == wanted
        assert len(set(names(found))) == keep
    assert (3, 9) in names(choose(rankings, 8, range(10), leader=9))
    assert not any(9 in one for one in names(choose(rankings[1:], 8, range(10))))


def test_sets_that_do_not_fit_together_are_passed_over():
    rankings = rank(4, scored({(0, 1): 0.9, (2, 3): 0.8}))
    found = choose(rankings, 1, range(4), lambda members: members != (0, 1))
    assert names(found) == [(2, 3)]


def result(system, part, item, value, text=""):
    return ItemResult(
        system, "t", ItemPart(part), item, "exact_match", float(value), text, f"item:{item}"
    )


def test_worked_answers_need_every_hop_and_one_who_writes_answers_of_the_asked_kind():
    items = (Item(str(k), "p", (f"city{k % 3}",), cot_prompt="p") for k in range(6))
    task = Task("t", tuple(items))
    knows = {"base": (0, 1), "facts": (1, 1), "form": (0, 1), "other": (0, 0)}
    rows = []
    for name, hops in knows.items():
        for k in range(6):
            rows += [result(name, f"hop{h + 1}", str(k), right) for h, right in enumerate(hops)]
            rows.append(result(name, "question", str(k), 0))
            said = f"she lives in city{(k + 1) % 3}" if name == "form" else "she is married"
            rows.append(result(name, "steps", str(k), 0, said))
    known = TaskScores.of(task, list(knows), rows)
    sets = np.array([(0, 1), (0, 2), (1, 2)])
    assert known.steps(sets, known.covered(sets)).mean(1).tolist() == [1.0, 0.0, 0.0]
    assert known.form.tolist() == [0.0, 0.0, 1.0, 0.0]
    two = replace(task, items=task.items[:2])  # their answers do not repeat, those of all items do
    assert TaskScores.of(two, list(knows), rows).form.tolist() == [1 / 2, 1 / 2, 1.0, 1 / 2]
    assert TaskScores.of(two, list(knows), rows, task).form.tolist() == [0.0, 0.0, 2 / 3, 0.0]


@pytest.mark.parametrize(("added", "wanted"), [(0.0, 0.5), (1.0, 1.0), (None, 1.0)])
def test_worked_answers_are_forecast_halfway_between_added_and_known_hops(added, wanted):
    """Both members together know every hop; effects added say how far one spoils the other's."""
    item = Item("0", "p", ("ulm",), cot_prompt="p", hops=(Hop("h", ("ulm",)),))
    task, rows = Task("t", (item,)), []
    for name, right in {"base": 0, "facts": 1, "form": 0}.items():
        said = "ulm" if name == "form" else ""
        rows += [result(name, "hop1", "0", right), result(name, "question", "0", 0)]
        rows.append(result(name, "steps", "0", 0, said))
    hop = SimpleNamespace(task="t", part="hop1", item=item)
    values = np.full((1, 1), added, np.float32)
    forecast = SimpleNamespace(
        values=lambda _: (values, values), reading=SimpleNamespace(questions=[hop])
    )
    known = TaskScores.of(task, ["base", "facts", "form"], rows)
    sets = Ranking([], [known], None if added is None else forecast)  # type: ignore[arg-type]
    assert sets.answers(np.array([(0, 1)]))["steps"][0].tolist() == [[wanted]]


@pytest.mark.parametrize(("steps", "leader"), [("0011", None), ("01111111", 0)])
def test_a_leader_of_worked_steps_is_judged_by_the_items_that_have_them(steps, leader):
    """Further items have no worked steps: they make no lead more certain."""
    task = Task("t", tuple(Item(str(k), "p", ("x",), cot_prompt="p") for k in range(40)))
    rows = [result(name, "question", str(k), 0) for name in ("base", "a") for k in range(40)]
    for k, value in enumerate(steps):
        rows += [result("base", "steps", str(k), k == 1), result("a", "steps", str(k), value)]
    known = TaskScores.of(task, ["base", "a"], rows)
    assert Ranking([], [known], None).leader == leader


def test_members_that_answer_different_items_know_more_together():
    task = Task("t", tuple(Item(str(k), "p", ("x",)) for k in range(4)))
    right = {"base": "0000", "a": "1100", "b": "0011", "c": "1000"}
    rows = [
        result(n, "question", str(k), v) for n, bits in right.items() for k, v in enumerate(bits)
    ]
    known = TaskScores.of(task, list(right), rows)
    assert known.question(np.array([(0, 1), (0, 2), (1, 2)])).mean(1).tolist() == [0.75, 0.5, 0.625]
    assert known.alone().tolist() == [0.0, 0.5, 0.5, 0.25]


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
