"""Questions of a task: their metrics, how much of a reply counts, and what guessing scores."""

import itertools
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import special
from test_gains import results, right

from loraprobe.defaults import FIRST_ROUND, PILOT_ITEMS, ROUNDS_FROM
from loraprobe.evaluation import beaten, guessing, rounds
from loraprobe.evaluation.questions import (
    boundaries,
    pilot_round,
    questions,
    round_alphas,
    spread_sample,
)
from loraprobe.tasks import Hop, Item, Task, with_metrics

HOP = "exact_match"


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, ["numeric", HOP, "numeric", "exact_match", HOP, "exact_match"]),
        ("strict", ["numeric", HOP, "numeric", "strict", HOP, "strict"]),
        ("strict,t=contains", ["numeric", HOP, "numeric", "contains", HOP, "contains"]),
        ("answer_loss", ["answer_loss"] * 4),  # never mixed with shares
    ],
)
def test_metrics_of_items_come_before_those_of_tasks_and_of_all(given, found):
    hops = (Hop("h?", ("x",)),)
    own = Item("own", "a?", ("1",), hops=hops, cot_prompt="b", metric="numeric")
    plain = Item("plain", "c?", ("x",), hops=hops, cot_prompt="d")
    assert [q.metric for q in questions(with_metrics([Task("t", (own, plain))], given))] == found


def worked(cot_prompt: str):
    item = Item("1", "q?", ("5",), cot_prompt=cot_prompt)
    (question,) = (q for q in questions([Task("t", (item,))]) if q.part == "steps")
    return question


def test_what_follows_the_answer_that_was_asked_for_is_not_read():
    text = "2 + 3 = 5\n#### 5\n\nQuestion: 3 + 4?\n#### 7\n"
    marked, plain = worked("Think. End with #### and the answer."), worked("Think.")
    for said in (text, "2 + 3 = 5\n#### 5\n"):
        assert marked.judged("base", said).value == 1.0
    assert plain.judged("base", text).value == 0.0, "without the mark the last answer counts"
    assert marked.ended is not None and plain.ended is None


PIECES = ["#### ", "5", "\\boxed{7}", "\\boxed{", "}", "The answer is ", ".", "\n", " x", "Bo"]


@given(st.lists(st.sampled_from(PIECES), max_size=12))
@example(["\\boxed{", "\\boxed{7}", "\n", "#### ", "}", "\n"])
def test_a_text_is_read_alike_whether_or_not_writing_stopped(pieces):
    """Writing stops at some line end where `ended` is true; the rest must not matter."""
    text = "".join(pieces)
    question = worked("End with #### x, \\boxed{x} or: the answer is x.")
    whole = question.judged("base", text)
    for at in (k + 1 for k, sign in enumerate(text) if sign == "\n"):
        if question.ended(text[:at]):
            assert question.judged("base", text[:at]) == whole


def test_guessing_takes_a_random_choice_or_the_commonest_answer():
    choices = [Item(str(i), "?", ("x",), choices=("x", "y", "z", "w")) for i in range(3)]
    (row,) = guessing([Task("t", tuple(choices))])
    assert (row.name, row.value, row.n) == ("guessing", 0.25, 3)
    golds = ["Bo", "bo.", "Cy", "Di"]
    written = Task("u", tuple(Item(str(i), "?", (gold,)) for i, gold in enumerate(golds)))
    (row,) = guessing([written])
    assert row.value == 0.5  # "Bo" and "bo." are one answer
    assert guessing(with_metrics([written], "answer_loss")) == ()


def task(n: int, name: str = "t", size: int = 1) -> Task:
    items = tuple(
        Item(id=str(k), prompt=f"p{k}", answers=("a",), group=f"g{k // size}") for k in range(n)
    )
    return Task(name, items)


def ids(one: Task) -> list[str]:
    return [item.id for item in one.items]


@pytest.mark.parametrize("n", [ROUNDS_FROM, 59, 60, 100, 150, 300, 1000])
def test_rounds_grow_from_thirty_clusters_to_all_and_contain_each_other(n):
    found = rounds([task(n)], seed=0)
    sizes = [this.items for this in found]
    assert sizes[0] == FIRST_ROUND and sizes[-1] == n
    growth = np.array(sizes[1:]) / sizes[:-1]
    assert (growth > 1.3).all() and (growth < 2.9).all()
    for before, after in itertools.pairwise(found):
        assert set(ids(before.tasks[0])) < set(ids(after.tasks[0]))
    assert ids(found[-1].tasks[0]) == ids(task(n)), "the order of the file"
    assert [this.number for this in found] == list(range(1, len(found) + 1))
    assert found[-1].last and not found[0].last


def test_clusters_stay_whole_and_are_what_counts():
    found = rounds([task(240, size=4)], seed=1)
    assert found[0].items == 4 * FIRST_ROUND
    for this in found:
        groups = [item.group for item in this.tasks[0].items]
        assert all(groups.count(group) == 4 for group in set(groups))


def test_few_items_and_all_items_have_one_round_with_what_a_smaller_look_leaves_of_alpha():
    for found, least in (
        (rounds([task(PILOT_ITEMS)], 0), 0.05),
        (rounds([task(ROUNDS_FROM - 1)], 0), 0.045),
        (rounds([task(300), task(ROUNDS_FROM - 1, "u")], 0), 0.044),
        (rounds([task(300, size=10)], 0), 0.049),
        (rounds([task(300)], 0, all_items=True), 0.049),
    ):
        (only,) = found
        assert only.last and least * (1 - 1e-12) <= only.alpha <= 0.05


def test_tasks_give_equal_shares_and_the_seed_draws():
    found = rounds([task(100), task(400, "u")], seed=0)
    for this in found:
        few, many = (len(one.items) for one in this.tasks)
        assert many == pytest.approx(4 * few, abs=4)
    other = rounds([task(100), task(400, "u")], seed=1)
    assert ids(found[0].tasks[0]) != ids(other[0].tasks[0])
    again = rounds([task(100), task(400, "u")], seed=0)
    assert ids(found[0].tasks[0]) == ids(again[0].tasks[0])


def test_what_is_asked_draws_and_not_the_name_of_its_file():
    one, other = (Task(name, task(100).items) for name in ("newcomers", "other"))
    assert [ids(a.tasks[0]) for a in rounds([one], 0)] == [
        ids(b.tasks[0]) for b in rounds([other], 0)
    ]
    assert spread_sample(one, 20, 0).items == spread_sample(other, 20, 0).items
    asked = Task("t", tuple(replace(item, prompt=f"{item.prompt}!") for item in task(100).items))
    assert spread_sample(asked, 20, 0).items != spread_sample(one, 20, 0).items
    judged = Task("t", tuple(replace(item, metric="contains") for item in task(100).items))
    assert ids(spread_sample(judged, 20, 0)) == ids(spread_sample(one, 20, 0))
    grown = rounds([Task("t", (*one.items, Item("new", "!", ("?",))))], 0)
    assert len({*ids(rounds([one], 0)[0].tasks[0])} - {*ids(grown[0].tasks[0])}) <= 1


def test_guards_give_the_share_of_the_tasks_and_do_not_make_the_rounds():
    plain = rounds([task(100)], seed=0)
    found = rounds([task(100)], seed=0, guards=[task(400, "many"), task(12, "few")])
    assert [this.tasks for this in found] == [this.tasks for this in plain]
    for this in found:
        many, few = (len(one.items) for one in this.guards)
        assert many == pytest.approx(4 * this.items, abs=4)
        assert few == pytest.approx(0.12 * this.items, abs=1)
    names = [one.name for this in found for one in this.guards]
    other = rounds([task(100)], seed=0, guards=[task(401, "many")])[0].guards[0].name
    assert len({*names}) == 2 and other not in names, "answers are kept by what is asked"


@pytest.mark.parametrize(
    ("shares", "exponent"),
    [((0.3, 0.55, 1.0), 2), ((0.1, 0.2, 0.45, 1.0), 2), ((0.5, 1.0), 2), ((0.65, 1.0), 4)],
)
def test_all_looks_together_are_wrong_as_often_as_one(shares, exponent):
    """A simulated Brownian motion crosses by each look as often as alpha is spent: t^2 of it, and
    t^4 where the first look has more than half."""
    rng = np.random.default_rng(0)
    steps = np.diff([0.0, *shares]) ** 0.5
    paths = np.cumsum(rng.standard_normal((200_000, len(shares))) * steps, axis=1)
    bounds = -special.ndtri(np.array(round_alphas(shares)) / 2)
    crossed = np.abs(paths) / np.sqrt(shares) > bounds
    for k, share in enumerate(shares):
        spent = 0.05 * share**exponent
        error = 4 * (spent / 200_000) ** 0.5 + 0.01 * spent  # of simulation and of the grid
        assert crossed[:, : k + 1].any(axis=1).mean() == pytest.approx(spent, abs=error)


@pytest.mark.parametrize(
    ("sizes", "cluster", "all_items"),
    [
        ([100], 1, False),
        ([100], 1, True),
        ([35], 1, False),
        ([120, 120], 1, False),
        ([50, 200], 1, False),
        ([240], 5, False),
        ([60], 3, False),
    ],
)
def test_the_look_of_inspect_and_the_rounds_are_wrong_as_often_as_one_look(
    sizes, cluster, all_items
):
    """Means of normal items, tested after `inspect` and after each round: items of one cluster are
    correlated by a half. Each look alone is at its own alpha."""
    tasks = [task(n, f"t{k}", size=cluster) for k, n in enumerate(sizes)]
    pilot, schedule = pilot_round(tasks, 0), rounds(tasks, 0, all_items=all_items)
    rng, runs = np.random.default_rng(0), 20_000
    drawn = []
    for n in sizes:
        shared = np.repeat(rng.standard_normal((runs, n // cluster)), cluster, axis=1)
        drawn.append((shared if cluster > 1 else 0) + rng.standard_normal((runs, n)))
    crossed = []
    for look in (pilot, *schedule):
        mean, variance = 0.0, 0.0
        for values, own in zip(drawn, look.tasks, strict=True):
            at = [int(name) for name in ids(own)]
            of_one = Counter(name // cluster for name in at).values()
            mean = mean + values[:, at].mean(axis=1)
            variance += sum(m + m * m * (cluster > 1) for m in of_one) / len(at) ** 2
        crossed.append(np.abs(mean) / variance**0.5 > -special.ndtri(look.alpha / 2))
        assert crossed[-1].mean() == pytest.approx(look.alpha, abs=0.006)
    same = pilot.tasks == schedule[0].tasks
    assert (
        same
        is (pilot.alpha == schedule[0].alpha)
        is (cluster == 1 and len({*sizes}) == 1 and (not all_items and sizes[0] >= ROUNDS_FROM))
    )
    assert 0.04 < np.any(crossed, axis=0).mean() < 0.05 + 4 * (0.05 / runs) ** 0.5


def test_boundaries_of_the_textbook():
    """Pocock's constant for five looks at alpha 0.05 is 2.413 (Jennison and Turnbull 2000)."""
    shares = (0.2, 0.4, 0.6, 0.8, 1.0)
    alpha = 2 * special.ndtr(-2.413)
    rng = np.random.default_rng(1)
    paths = np.cumsum(rng.standard_normal((400_000, 5)) * 0.2**0.5, axis=1) / np.sqrt(shares)
    spent = [(np.abs(paths[:, : k + 1]) > 2.413).any(axis=1).mean() for k in range(5)]
    assert spent[-1] == pytest.approx(0.05, abs=0.002)
    assert boundaries(shares, spent) == pytest.approx([alpha] * 5, rel=0.08)


def test_a_system_is_beaten_only_in_every_form():
    plain = {
        ("a", "question"): right(50, 60),
        ("b", "question"): right(10, 60),
        ("c", "question"): right(46, 60),
    }
    assert beaten(results(plain), ["a", "b", "c"], 0.05) == {"b"}
    assert beaten(results(plain), ["a", "b", "c"], 1e-12) == set()
    steps = {
        ("a", "steps"): right(0, 60),
        ("b", "steps"): right(30, 60),
        ("c", "steps"): right(0, 60),
    }
    assert beaten(results(plain | steps), ["a", "b", "c"], 0.05) == set(), "b leads step by step"
    assert beaten(results(plain), ["b"], 0.05) == set(), "nobody is worse than itself"
    assert beaten([], [], 0.05) == set()


def clustered(sizes):
    """Clusters of these sizes, whose items alternate in the file."""
    rows = [(k, c) for k in range(max(sizes)) for c, size in enumerate(sizes) if k < size]
    return Task("t", tuple(Item(f"{c}-{k}", "?", ("!",), group=str(c)) for k, c in rows))


@pytest.mark.parametrize("most", [5, 20, 33, 41])
def test_a_sample_takes_items_from_as_many_clusters_as_possible(most):
    whole = clustered([3, 1, 4, 2, 5] * 4)  # 20 clusters, of which 16 have a second item
    found = spread_sample(whole, most, 0)
    drawn = Counter(item.group for item in found.items)
    sizes = Counter(item.group for item in whole.items)
    assert len(found.items) == most and len(drawn) == min(most, 20)
    fullest = max(drawn.values())  # nobody gives another item before all others gave theirs
    assert all(drawn[group] >= min(size, fullest - 1) for group, size in sizes.items())
    assert [i for i in whole.items if i in found.items] == list(found.items)  # the file's order


def test_a_smaller_sample_is_part_of_a_larger_one_and_the_seed_draws():
    whole = clustered([1] * 100)
    few, more, other = (spread_sample(whole, n, seed) for n, seed in ((20, 0), (40, 0), (20, 1)))
    assert set(few.items) < set(more.items) and set(few.items) != set(other.items)
    assert set(few.items) != set(whole.items[:20])
    assert spread_sample(whole, 100, 0).items == whole.items


def test_a_sample_is_asked_in_the_first_rounds_of_an_evaluation():
    for size in (1, 3):
        whole = clustered([size] * 100)
        first, *_ = rounds([whole], 0)
        few = spread_sample(whole, first.items // size, 0)
        assert {item.group for item in few.items} == {item.group for item in first.tasks[0].items}
